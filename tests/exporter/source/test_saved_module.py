from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models.source_tiny import Tiny, made_in_function

from tokexport.exporter.errors import SourceError, UntrustedPickleError
from tokexport.exporter.source import Source, SourceOptions, load_source
from tokexport.exporter.source.factory import explain_unpicklable

X = torch.ones(2, 4)


def load(path: Path, trust: bool = True, folders: tuple[Path, ...] = ()) -> Source:
    return load_source(SourceOptions(str(path), folders, trust_pickle=trust))


def refusal(path: Path, trust: bool = True, folders: tuple[Path, ...] = ()) -> str:
    with pytest.raises(SourceError) as caught:
        load(path, trust, folders)
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_trusted_module(tmp_path: Path, zipped: bool) -> None:
    model = Tiny().eval()
    torch.save(model, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    source = load(tmp_path / "x.pth")
    assert source.kind == "saved-module"
    assert source.model(X).equal(model(X))
    assert not source.model.training
    assert source.example_args is None


@pytest.mark.parametrize("zipped", [True, False])
def test_a_module_is_refused_without_trust(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pt"
    torch.save(Tiny(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UntrustedPickleError) as caught:
        load(path, trust=False)
    message = str(caught.value)
    assert "a pickled object (models.source_tiny.Tiny): loading it runs its code" in message
    for way in ("torch.export.save(", "package.module:factory", "--builder", "--trust-pickle"):
        assert way in message


def test_no_code_runs_without_trust(tmp_path: Path, marker: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    path = tmp_path / "x.pt"
    for zipped in (True, False):
        torch.save(Touch(), path, _use_new_zipfile_serialization=zipped)
        assert "loading it runs its code" in refusal(path, trust=False)
        assert not marker.exists()
    assert "The file holds a NoneType, which is not a torch.nn.Module" in refusal(path)
    assert marker.exists()


@pytest.mark.parametrize("trust", [True, False])
def test_weights_alone_need_a_builder_and_no_trust(tmp_path: Path, trust: bool) -> None:
    torch.save(Tiny().state_dict(), tmp_path / "x.pt")
    message = refusal(tmp_path / "x.pt", trust)
    assert "The file is a state dict: weights without the model they belong to" in message
    assert "Pass --builder package.module:factory" in message
    assert "first.weight" in message
    assert "--trust-pickle" not in message


@pytest.mark.parametrize("trust", [True, False])
def test_a_training_checkpoint_needs_a_builder(tmp_path: Path, trust: bool) -> None:
    torch.save({"model": Tiny().state_dict(), "epoch": 3}, tmp_path / "x.pt")
    message = refusal(tmp_path / "x.pt", trust)
    assert "a training checkpoint: weights under 'model' without the model" in message
    assert "--builder" in message


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(2, 3), "holds one tensor of shape (2, 3)"),
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "holds a dict of epoch (int)"),
    ],
)
def test_what_is_no_model_says_what_it_holds(tmp_path: Path, value: Any, said: str) -> None:
    torch.save(value, tmp_path / "x.pt")
    message = refusal(tmp_path / "x.pt")
    assert "The file holds no model and no state dict" in message
    assert said in message
    assert "def build():" in message


def save_from(folder: Path, module: str, source: str) -> Path:
    """Saves ``Net()`` of a module written for it; the module is forgotten afterwards."""
    folder.mkdir()
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        torch.save(__import__(module).Net(), folder / "x.pt")
    finally:
        sys.path.remove(str(folder))
        del sys.modules[module]
    return folder / "x.pt"


NET = (
    "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self): super().__init__(4, 3)\n"
)


def test_classes_are_found_on_the_code_path(tmp_path: Path) -> None:
    path = save_from(tmp_path / "code", "source_made_net", NET)
    message = refusal(path)
    assert "The module 'source_made_net', which the model's classes are in, is not found" in message
    assert "--code-path" in message
    before = list(sys.path)
    assert load(path, folders=(tmp_path / "code",)).model(X).shape == (2, 3)
    assert sys.path == before


def test_a_class_that_is_no_longer_there(tmp_path: Path) -> None:
    path = save_from(tmp_path / "code", "source_renamed_net", NET)
    (tmp_path / "code" / "source_renamed_net.py").write_text("class Other: ...\n", encoding="utf-8")
    message = refusal(path, folders=(tmp_path / "code",))
    assert "The module 'source_renamed_net' has no class 'Net'" in message


def test_a_class_of_the_script_that_saved_it(tmp_path: Path, monkeypatch: Any) -> None:
    scripted = type("Scripted", (torch.nn.Linear,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Scripted", scripted, raising=False)
    torch.save(scripted(4, 3), tmp_path / "x.pt")
    monkeypatch.delattr(sys.modules["__main__"], "Scripted")
    message = refusal(tmp_path / "x.pt")
    assert "The class 'Scripted' was defined in the script that saved the model" in message
    assert "Move the class into a module" in message


def test_an_error_of_the_models_own(tmp_path: Path) -> None:
    source = NET + "    def __setstate__(self, state): raise ValueError('version 2 expected')\n"
    path = save_from(tmp_path / "code", "source_failing_net", source)
    message = refusal(path, folders=(tmp_path / "code",))
    assert "Loading x.pt failed: ValueError: version 2 expected" in message
    assert "source_failing_net.py:4" in message


def test_a_class_made_in_a_function_is_explained(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, pickle.PicklingError)) as caught:
        torch.save(made_in_function(), tmp_path / "x.pt")
    explained = explain_unpicklable(caught.value)
    assert "made_in_function.<locals>.Patched was made inside a function" in explained
    assert "def build():" in explained
    assert explain_unpicklable(ValueError("something else")) == ""


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("trust", [True, False])
def test_torchscript_says_how_to_export_anew(tmp_path: Path, trust: bool) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "x.pt"))
    message = refusal(tmp_path / "x.pt", trust)
    assert "TorchScript archive" in message
    assert "torch.export.save(torch.export.export(model.eval(), (x,)), 'model.pt2')" in message
