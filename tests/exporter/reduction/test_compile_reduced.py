"""A compile with a recipe: held to the reduced module, and told apart from the unreduced one."""

from __future__ import annotations

import io
import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.thorough import thorough_but
from helpers.torchvision_ops import define_torchvision_operators
from models import plain_vits
from models.cli_models import PlainVit, plain_vit
from rich.console import Console
from torch import Tensor, nn

import tokexport
from tokexport.exporter.compile import CompileResult
from tokexport.exporter.eager.outputs import flatten
from tokexport.exporter.errors import ModelNotSupportedError, UsageError
from tokexport.exporter.inspection.inspect import GIVEN_MEANS, inspect
from tokexport.exporter.report.report import render
from tokexport.runtimes import load
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.verification import verify_bundle

RECIPE = "tome:r=4"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    x = random.standard_normal((5, 3, 24, 24)) + 2 * random.standard_normal((5, 3, 1, 1))
    path = tmp_path_factory.mktemp("samples") / "data.npz"
    np.savez(path, x=x.astype(np.float32), labels=np.array([1, 4, 1, 1, 4]))
    return path


@pytest.fixture(scope="module")
def compiled(samples: Path) -> CompileResult:
    model, example = plain_vit()
    return tokexport.compile(
        model, example, output=samples.parent / "out", inputs=samples, reduce=RECIPE
    )


def answers(model: torch.nn.Module, samples: Path) -> dict[str, np.ndarray]:
    with torch.no_grad():
        rows = [model(x[None]) for x in torch.from_numpy(np.load(samples)["x"])]
    return {name: torch.cat([row[name] for row in rows]).numpy() for name in rows[0]}


def test_the_artifact_answers_as_the_reduced_module(compiled: CompileResult, samples: Path) -> None:
    model, example = plain_vit()
    wanted = answers(tokexport.reduce(model, RECIPE, example), samples)
    unreduced = answers(model, samples)
    with load(compiled.bundle) as runner:
        rows = [runner.run({"x": x[None]}) for x in np.load(samples)["x"]]
    logits = np.concatenate([row["logits"] for row in rows])
    np.testing.assert_allclose(logits, wanted["logits"], rtol=0, atol=1e-4)
    assert np.abs(logits - unreduced["logits"]).max() > 1e-2
    assert verify_bundle(compiled.bundle).passed


def test_the_report_has_the_reduction_and_its_cost(compiled: CompileResult) -> None:
    report: dict[str, Any] = compiled.report.to_json()
    reduction = report["reduction"]
    assert reduction["recipe"] == RECIPE
    assert reduction["options"] == {
        "layers": None,
        "r": 4,
        "inflection": 0.0,
        "prop_attn": True,
    }
    assert reduction["tokens"] == [37, 33, 29, 25]
    assert report["token_schedule"] == [37, 33, 29]
    assert 0.9 < reduction["agreement"]["logits"]["cosine"] < 1
    assert reduction["accuracy_reduced"] == report["accuracy"]["before"]
    assert reduction["accuracy_unreduced"] == 1.0
    assert list(report["stage_seconds"])[0] == "reduce"


def test_the_unreduced_model_is_timed_in_the_same_rounds(compiled: CompileResult) -> None:
    speed, over = compiled.report.speed, compiled.report.speed_over_unreduced
    assert speed is not None
    assert over is not None
    assert speed.baseline.startswith("eager, ")
    assert over.baseline.startswith("unreduced eager, ")
    assert over.timings == speed.timings
    (timed,) = {*speed.timings} - {speed.baseline, over.baseline}
    assert re.fullmatch(r"ort fp32, \d+ threads?", timed)
    medians = {name: timing.median_ms for name, timing in speed.timings.items()}
    ratio = over.ratios[timed].of_medians
    assert ratio == pytest.approx(medians[over.baseline] / medians[timed])


def test_the_manifest_records_the_recipe(compiled: CompileResult) -> None:
    reduction = read_manifest(compiled.bundle).reduction
    assert reduction is not None
    assert reduction["recipe"] == RECIPE
    assert reduction["method"] == "tome"
    assert reduction["blocks"] == ["blocks.0", "blocks.1", "blocks.2"]
    assert reduction["special_tokens"] == 1


def test_the_summary_shows_it(compiled: CompileResult) -> None:
    file = io.StringIO()
    render(compiled.report, Console(file=file, width=120))
    said = " ".join(file.getvalue().split())
    assert "tome:r=4 in the 3 blocks of 'blocks', 1 special token " in said
    assert "37 → 33 29 25 tokens behind each block" in said
    assert "Parity with the model with its reduction" in said
    assert "Speed over unreduced eager" in said
    assert "tokens: cannot be compared with the unreduced model's" in said


def test_the_given_model_is_left_as_it_was(tmp_path: Path) -> None:
    model, example = plain_vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(example)["logits"]
    result = tokexport.compile(
        model, example, output=tmp_path / "out", reduce="tome", restore=True, timed=False
    )
    assert result.report.speed is None
    assert result.report.speed_over_unreduced is None
    assert result.report.reduction is not None
    assert result.report.reduction.agreement["tokens"] is not None
    assert type(model.get_submodule("blocks.0")).__name__ == "PlainBlock"
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(model(example)["logits"], wanted, rtol=0, atol=0)


def test_a_recipe_of_a_file_with_a_schedule(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('method = "tome"\nr = [6, 0, 2]\n')
    model, example = plain_vit()
    found = inspect(model, example, targets=(), reduce=tmp_path / "recipe.toml")
    assert found.recipe == "tome:r=[6,0,2]"
    assert [part.tokens_out for part in found.blocks] == [31, 31, 29]


def test_inspect_counts_the_given_model_itself() -> None:
    model, example = plain_vit()
    plain = inspect(model, example, targets=())
    reduced = inspect(model, example, targets=(), reduce=RECIPE)
    assert reduced.unreduced == plain.macs
    assert reduced.unreduced_means == GIVEN_MEANS
    assert sum(reduced.macs.values()) < sum(plain.macs.values())
    assert [part.tokens_in for part in reduced.blocks] == [37, 33, 29]
    assert reduced.to_json()["recipe"] == RECIPE
    assert plain.recipe == ""


def test_a_schedule_of_another_length_is_refused(tmp_path: Path) -> None:
    model, example = plain_vit()
    with pytest.raises(UsageError, match="2 numbers, and the model has 3 blocks"):
        tokexport.compile(model, example, output=tmp_path / "out", reduce="tome:r=[4,4]")
    assert list(tmp_path.iterdir()) == []


def test_restore_without_reduce_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--restore"):
        tokexport.compile(PlainVit(), output=tmp_path / "out", restore=True)


def siglip2(batch: int, seed: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """Its head pools the tokens under the mask of all patches."""
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    torch.manual_seed(0)
    config = Siglip2VisionConfig(**sizes, intermediate_size=96, patch_size=4, num_patches=36)
    model = Siglip2VisionModel(config).eval()
    draw = torch.Generator().manual_seed(seed)
    return model, {
        "pixel_values": torch.randn(batch, 36, 48, generator=draw),
        "pixel_attention_mask": torch.ones(batch, 36, dtype=torch.long),
        "spatial_shapes": torch.tensor([[6, 6]] * batch),
    }


def of_images(name: str, batch: int, seed: int) -> tuple[nn.Module, dict[str, Tensor]]:
    images = torch.randn(batch, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    return plain_vits.build(name), {"pixel_values": images}


ENCODERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "CLIP": (partial(of_images, "transformers CLIP"), {}),
    "DINOv3": (partial(of_images, "transformers DINOv3"), {}),
    "SigLIP 2": (siglip2, {"constants": ["spatial_shapes"], "restore": True}),
}


@pytest.mark.parametrize(
    ("name", "target"),
    thorough_but([("DINOv3", "ort")], itertools.product(ENCODERS, ("ort", "openvino"))),
)
def test_encoders_that_people_have_answer_as_reduced(
    name: str, target: str, tmp_path: Path
) -> None:
    define_torchvision_operators()
    build, options = ENCODERS[name]
    model, example = build(3, 0)
    result = tokexport.compile(
        model, example, target, output=tmp_path / "out", reduce="tome:r=3", timed=False, **options
    )
    recipe = "tome:r=3,restore=true" if "restore" in options else "tome:r=3"
    reduced = tokexport.reduce(model, recipe, example)
    _, fresh = build(3, 5)
    with torch.no_grad():
        wanted = flatten(reduced(**fresh))[0]
    with load(result.bundle) as runner:
        found = runner.run({key: one.numpy() for key, one in fresh.items()})
    assert {*found} == {*wanted}
    for key, one in wanted.items():
        np.testing.assert_allclose(found[key], one.numpy(), rtol=0, atol=1e-4)


def test_a_mask_of_all_patches_behind_the_blocks_names_the_way_out(tmp_path: Path) -> None:
    define_torchvision_operators()
    model, example = siglip2(1, 0)
    with pytest.raises(ModelNotSupportedError, match="cannot be traced") as caught:
        tokexport.compile(
            *(model, example),
            **{"output": tmp_path / "out", "reduce": RECIPE, "constants": ["spatial_shapes"]},
        )
    assert caught.value.fix.startswith("Pass --restore, if what follows the blocks counts on every")
