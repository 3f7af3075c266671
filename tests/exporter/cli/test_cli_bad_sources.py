"""Sources that are no model, or not enough of one: each message is read, and the exit code."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli import MODELS, compile_model, refusal
from models.cli_models import merging_vit

SHAPE = ("--input-shape", "1,3,12,12")
FORMS = ("package.module:factory", "timm:NAME")


def refused(source: object, folder: Path, *options: object, code: int = 2) -> str:
    """Compiles a source into ``folder/out``, which must fail and leave nothing there."""
    answer = compile_model(source, folder / "out", *SHAPE, *options)
    assert answer.stdout == ""
    assert not (folder / "out").exists()
    return refusal(answer, code, folder)


def has(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, message


def test_a_torchscript_archive_is_to_be_exported_anew(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that TorchScript is on its way out
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    has(
        refused(tmp_path / "model.pt", tmp_path),
        *("The file is a TorchScript archive", str(tmp_path / "model.pt")),
        "torch.export.save(torch.export.export(model.eval(), (x,)), 'model.pt2')",
    )


def test_a_whole_module_needs_trust(tmp_path: Path) -> None:
    torch.save(merging_vit(), tmp_path / "model.pt")
    message = refused(tmp_path / "model.pt", tmp_path)
    has(message, "pickled object (models.cli_models.MergingVit): loading it runs its code")
    has(message, "Safe ways to pass a model:", "model.pt2", "--builder", "pass --trust-pickle")
    assert all(line.startswith("  ") for line in message.splitlines()[1:]), message


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state"])
def test_weights_alone_need_a_builder(key: str | None, tmp_path: Path) -> None:
    state = merging_vit().state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "model.pt")
    message = refused(tmp_path / "model.pt", tmp_path)
    has(message, "without the model they belong to.", "6 tensors, such as patches.weight")
    has(message, "Pass --builder package.module:factory", "def build():", "timm:NAME --checkpoint")
    if key is not None:
        has(message, f"a training checkpoint: weights under '{key}'")


def test_a_builder_whose_weights_do_not_fit_names_the_keys(tmp_path: Path) -> None:
    state = merging_vit().state_dict()
    state["neck.weight"] = state.pop("qkv.weight")
    torch.save({"model": state}, tmp_path / "model.pt")
    has(
        refused(tmp_path / "model.pt", tmp_path, "--builder", f"{MODELS}:wide_vit"),
        "The weights are not those of this model (MergingVit).",
        *("missing (1): qkv.weight", "unexpected (1): neck.weight"),
        "head.weight: (5, 8) in the file, (7, 8) in the model",
        "Build the model with the same sizes and options as in training",
    )


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    message = refused(tmp_path / "model.pt", tmp_path)
    has(message, "The file does not exist.", str(tmp_path / "model.pt"), *FORMS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("text.pt", b"weights and measures", "it is a text file"),
        ("cat.png", b"\x89PNG\r\n\x1a\n" + bytes(64), "it is an image (PNG)"),
        ("empty.pt", b"", "it is empty (0 bytes)"),
        ("model.onnx", b"\x08\x08\x12\x07pytorch", "it is an ONNX model"),
        ("lfs.pt", b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        ("model.py", b"def build(): ...\n", "name the function in it as model:FUNCTION"),
    ],
)
def test_a_file_that_is_no_model(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name, tmp_path)
    has(message, "The file is not a model:", said, str(tmp_path / name), *FORMS)


def test_a_file_cut_short(tmp_path: Path) -> None:
    torch.save(merging_vit().state_dict(), tmp_path / "model.pt")
    content = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: len(content) // 2])
    has(refused(tmp_path / "model.pt", tmp_path), "The file is cut short or damaged.")


def test_arrays_are_inputs_and_no_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    has(refused(tmp_path / "x.npz", tmp_path), "an archive of numpy arrays (.npz)")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (f"{MODELS}:merging_vitt", ("has no 'merging_vitt'.", "It has merging_vit")),
        ("cli_no_such_module:build", ("There is no module 'cli_no_such_module'.", "--code-path")),
        (f"{MODELS}:CLASSES", ("cannot be called: it is of the type int.",)),
        ("timm:test_vitt", ("There is no model 'test_vitt' in timm", "Near names: test_vit")),
        ("resnet", ("There is no source named 'resnet'.", *FORMS)),
    ],
)
def test_a_name_that_names_nothing(source: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    has(refused(source, tmp_path), *parts)


def test_a_factory_that_fails_names_its_own_line(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "cli_failing.py").write_text("def build():\n    return {}['width']\n", encoding="utf-8")
    message = refused("cli_failing:build", tmp_path, "--code-path", code)
    has(message, "The factory 'cli_failing:build' failed: KeyError: 'width'")
    has(message, f"{code / 'cli_failing.py'}:2")


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    has(refused(saved, tmp_path), "it has no config.json", "model.save_pretrained(folder)")
    (saved / "config.json").write_text(json.dumps({"architectures": ["ViTModel"]}))
    has(refused(saved, tmp_path), "The folder has a config.json and no weights.")


def test_options_that_do_not_go_with_the_source(tmp_path: Path) -> None:
    torch.save(merging_vit(), tmp_path / "model.pt")
    message = refused(tmp_path / "model.pt", tmp_path, "--checkpoint", tmp_path / "model.pt")
    has(message, "--checkpoint does not go with this source", "Leave it out.")
    message = refused(f"{MODELS}:merging_vit", tmp_path, "--builder", f"{MODELS}:merging_vit")
    has(message, "--builder does not go with this source: the source is a factory itself.")
    message = refused(f"{MODELS}:merging_vit", tmp_path, "--checkpoint", tmp_path / "no.pt")
    has(message, "The checkpoint does not exist.", str(tmp_path / "no.pt"))


def test_names_without_end_are_cut(tmp_path: Path) -> None:
    torch.save({"model": {"x" * 1_000_000: torch.ones(1)}}, tmp_path / "model.pt")
    message = refused(tmp_path / "model.pt", tmp_path)
    assert len(message) < 20_000
    has(message, "xxx …", "Pass --builder package.module:factory")
