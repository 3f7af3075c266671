from __future__ import annotations

import argparse
import collections
import re
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from models.source_tiny import Tiny
from safetensors.torch import save_file

from tokexport.exporter.errors import SourceError
from tokexport.exporter.source import SourceOptions, load_source
from tokexport.exporter.source.files.checkpoint import WEIGHT_KEYS, load_checkpoint

Folders = tuple[Path, ...]
X = torch.ones(2, 4)


@pytest.fixture
def trained() -> Tiny:
    torch.manual_seed(1)
    return Tiny()


def save(value: Any, folder: Path, zipped: bool = True) -> Path:
    torch.save(value, folder / "x.pt", _use_new_zipfile_serialization=zipped)
    return folder / "x.pt"


def prefixed(prefix: str, model: Tiny) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", WEIGHT_KEYS)
def test_a_training_checkpoint(
    tmp_path: Path, models: Folders, trained: Tiny, key: str, zipped: bool
) -> None:
    optimizer = torch.optim.AdamW(trained.parameters())
    trained(X).sum().backward()
    optimizer.step()
    value = {
        "epoch": 7,
        "best": np.float64(0.81),
        "args": argparse.Namespace(lr=1e-3, output=PurePosixPath("/out"), amp=None),
        "optimizer": optimizer.state_dict(),
        "history": collections.defaultdict(list, loss=[0.1]),
        key: trained.state_dict(),
    }
    path = save(value, tmp_path, zipped)
    source = load_source(SourceOptions(str(path), models, builder="source_tiny:build"))
    assert source.kind == "checkpoint"
    assert source.model(X).equal(trained(X))
    assert source.notes == (f"the weights are those under {key!r} in the checkpoint",)
    assert source.location == f"{path} in source_tiny:build"
    assert source.model.tied.weight is source.model.first.weight


def test_a_bare_state_dict(tmp_path: Path, models: Folders, trained: Tiny) -> None:
    path = save(trained.state_dict(), tmp_path)
    source = load_source(SourceOptions(str(path), models, builder="source_tiny:build"))
    assert source.model(X).equal(trained(X))
    assert source.notes == ()


def test_example_inputs_of_the_builder_are_kept(
    tmp_path: Path, models: Folders, trained: Tiny
) -> None:
    path = save(trained.state_dict(), tmp_path)
    source = load_source(SourceOptions(str(path), models, builder="source_tiny:with_names"))
    assert source.example_args == ()
    assert source.example_kwargs["x"].equal(X)


def test_safetensors(tmp_path: Path, models: Folders, trained: Tiny) -> None:
    tensors = {name: value.clone() for name, value in trained.state_dict().items()}
    save_file(tensors, tmp_path / "x.safetensors")
    options = SourceOptions(str(tmp_path / "x.safetensors"), models, builder="source_tiny:build")
    assert load_source(options).model(X).equal(trained(X))


def test_weights_for_a_factory(tmp_path: Path, models: Folders, trained: Tiny) -> None:
    path = save({"model": trained.state_dict()}, tmp_path)
    source = load_source(SourceOptions("source_tiny:build", models, checkpoint=path))
    assert source.kind == "factory"
    assert source.model(X).equal(trained(X))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_prefixes_of_wrappers(tmp_path: Path, trained: Tiny, prefix: str) -> None:
    model = Tiny()
    notes = load_checkpoint(model, save(prefixed(prefix, trained), tmp_path))
    assert model(X).equal(trained(X))
    assert notes == (f"the prefix {prefix!r} of the checkpoint's names was taken off",)


def test_a_prefix_inside_the_names(tmp_path: Path, trained: Tiny) -> None:
    state = {
        name.replace("first.", "first._orig_mod."): value
        for name, value in trained.state_dict().items()
    }
    model = Tiny()
    notes = load_checkpoint(model, save(state, tmp_path))
    assert model(X).equal(trained(X))
    assert notes == ("the prefix '._orig_mod.' of the checkpoint's names was taken off",)


def test_a_prefix_that_is_the_models_own_stays(tmp_path: Path, trained: Tiny) -> None:
    wrapped = torch.nn.ModuleDict({"model": trained})
    model = torch.nn.ModuleDict({"model": Tiny()})
    assert load_checkpoint(model, save(wrapped.state_dict(), tmp_path)) == ()
    assert model["model"](X).equal(trained(X))


def test_averaged_weights_are_mentioned_and_not_taken(tmp_path: Path, trained: Tiny) -> None:
    value = {"model_ema": Tiny().state_dict(), "model": trained.state_dict()}
    model = Tiny()
    notes = load_checkpoint(model, save(value, tmp_path))
    assert model(X).equal(trained(X))
    assert notes == (
        "the weights are those under 'model' in the checkpoint, and not those under model_ema",
    )


def test_weights_under_another_key_when_there_is_one(tmp_path: Path, trained: Tiny) -> None:
    model = Tiny()
    notes = load_checkpoint(model, save({"vit": trained.state_dict(), "epoch": 1}, tmp_path))
    assert model(X).equal(trained(X))
    assert notes == ("the weights are those under 'vit' in the checkpoint",)


def test_a_nested_checkpoint(tmp_path: Path, trained: Tiny) -> None:
    model = Tiny()
    load_checkpoint(model, save({"model": {"state_dict": trained.state_dict()}}, tmp_path))
    assert model(X).equal(trained(X))


def test_half_precision_is_converted_and_said(tmp_path: Path, trained: Tiny) -> None:
    state = {name: value.half() for name, value in trained.state_dict().items()}
    model = Tiny()
    notes = load_checkpoint(model, save(state, tmp_path))
    assert notes == ("float16 weights of the checkpoint were converted to float32",)
    assert model.head.weight.equal(trained.head.weight.half().float())


def refusal(model: torch.nn.Module, path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        load_checkpoint(model, path)
    return str(caught.value)


def test_weights_that_do_not_fit_are_named(tmp_path: Path, trained: Tiny) -> None:
    state = trained.state_dict()
    del state["first.bias"]
    state["extra.weight"] = torch.ones(1)
    message = refusal(Tiny(classes=5), save(state, tmp_path))
    assert "The weights are not those of this model (Tiny)" in message
    assert "missing (1): first.bias" in message
    assert "unexpected (1): extra.weight" in message
    assert "head.weight: (3, 4) in the file, (5, 4) in the model" in message
    assert "of another shape (2)" in message


def test_at_most_eight_names_of_each(tmp_path: Path, trained: Tiny) -> None:
    state = {f"other.{index}": torch.ones(1) for index in range(20)}
    message = refusal(trained, save(state, tmp_path))
    unexpected = next(line for line in message.splitlines() if line.startswith("unexpected"))
    assert len(re.findall(r"other\.\d+", unexpected)) == 8
    assert unexpected.endswith("and 12 more")


def of_itself() -> dict[str, Any]:
    """A dict that contains itself."""
    made: dict[str, Any] = {}
    made["model"] = {"state_dict": made}
    return made


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"epoch": 3, "args": argparse.Namespace()}, "epoch (int), args (argparse.Namespace)"),
        (torch.ones(2, 3), "one tensor of shape (2, 3)"),
        ([1, 2], "a list"),
        ({}, "an empty dict"),
        ({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}, "a (dict of 1), b (dict of 1)"),
        (of_itself(), "model (dict of 1)"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path: Path, value: Any, said: str) -> None:
    message = refusal(Tiny(), save(value, tmp_path))
    assert "The checkpoint holds no state dict" in message
    assert said in message
    assert "Save the weights under one of model, state_dict" in message


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"model": model, "epoch": 1}])
def test_a_whole_module_is_no_checkpoint(tmp_path: Path, trained: Tiny, wrap: Any) -> None:
    message = refusal(Tiny(), save(wrap(trained), tmp_path))
    assert "models.source_tiny.Tiny" in message
    assert "torch.save(model.state_dict(), path)" in message


def test_no_code_of_a_checkpoint_runs(tmp_path: Path, marker: Path, trained: Tiny) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    for zipped in (True, False):
        path = save({"model": trained.state_dict(), "args": Touch()}, tmp_path, zipped)
        load_checkpoint(Tiny(), path)
        assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_checkpoint_that_is_not_there(tmp_path: Path, models: Folders) -> None:
    for path, said in ((tmp_path / "no.pt", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(SourceError, match=f"The checkpoint {said}"):
            load_source(SourceOptions("source_tiny:build", models, checkpoint=path))


def test_a_dict_that_comes_many_times_is_searched_once(tmp_path: Path) -> None:
    value: dict[str, Any] = {"epoch": 1}
    for _ in range(15):
        value = dict.fromkeys(WEIGHT_KEYS, value)
    with pytest.raises(SourceError, match="holds no state dict"):
        load_checkpoint(Tiny(), save(value, tmp_path))
