"""Every kind of source goes through the command, and the bundle answers as its model does."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli import MODELS, compile_model
from models.cli_models import merging_vit
from torch import Tensor, nn

from tokexport.runtimes import load

SHAPE = ("--input-shape", "1,3,12,12")


def agrees(bundle: Path, model: nn.Module, x: Tensor) -> None:
    """Holds a bundle with one input and one output to a model."""
    with torch.no_grad():
        expected = model.eval()(x)
    expected = getattr(expected, "logits", expected)
    with load(bundle) as runner:
        (name,) = (spec.name for spec in runner.inputs)
        (found,) = runner.run({name: x.numpy()}).values()
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def image(size: int = 12) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", ["module", "program", "checkpoint", "factory"])
def test_what_pytorch_users_have(form: str, tmp_path: Path) -> None:
    model = merging_vit()
    file = tmp_path / "model.pt"
    source: object = file
    options: tuple[object, ...] = SHAPE
    match form:
        case "module":
            torch.save(model, file)
            options = ("--trust-pickle", *SHAPE)
        case "program":
            source = tmp_path / "model.pt2"
            torch.export.save(torch.export.export(model, (image(),)), source)
            options = ()
        case "checkpoint":
            with torch.no_grad():
                model.head.bias.fill_(3)  # type: ignore[union-attr,operator]
            state = {f"module.{name}": value for name, value in model.state_dict().items()}
            torch.save({"model": state, "args": Namespace(folder=Path("/data"))}, file)
            options = ("--builder", f"{MODELS}:merging_vit", *SHAPE)
        case "factory":
            source = f"{MODELS}:merging_vit"
    answer = compile_model(source, tmp_path / "out", *options)
    assert answer.code == 0, answer
    assert answer.stdout.startswith("PASSED")
    assert answer.stderr == ""
    agrees(tmp_path / "out", model, image())


def test_a_factory_found_on_the_code_path_alone(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "cli_hers.py").write_text(
        "from torch import nn, zeros\ndef build():\n    return nn.Linear(4, 3), zeros(2, 4)\n",
        encoding="utf-8",
    )
    refused = compile_model("cli_hers:build", tmp_path / "out")
    assert refused.code == 2
    assert "--code-path" in refused.stderr
    answer = compile_model("cli_hers:build", tmp_path / "out", "--code-path", code, "--json")
    assert answer.code == 0
    assert answer.json["source"]["kind"] == "factory"
    with load(tmp_path / "out") as runner:
        assert [str(spec) for spec in runner.inputs] == ["input float32 (2, 4)"]


def test_a_timm_model_by_name_with_a_checkpoint(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(3)
    model = timm.create_model("test_vit", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    answer = compile_model(
        *("timm:test_vit", tmp_path / "out", "--checkpoint", tmp_path / "weights.pt", "--json")
    )
    assert answer.code == 0
    assert answer.json["source"]["location"] == "timm:test_vit"
    assert answer.json["token_schedule"] != []
    agrees(tmp_path / "out", model, image(160))


def test_a_transformers_folder(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(4)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=4,
    )
    model = ViTForImageClassification(config)
    model.save_pretrained(tmp_path / "saved")
    answer = compile_model(tmp_path / "saved", tmp_path / "out", "--json")
    assert answer.code == 0
    assert answer.json["source"]["kind"] == "transformers"
    with load(tmp_path / "out") as runner:
        assert [spec.name for spec in runner.inputs] == ["pixel_values"]
        assert [spec.name for spec in runner.outputs] == ["logits"]
    agrees(tmp_path / "out", model, image(32))
