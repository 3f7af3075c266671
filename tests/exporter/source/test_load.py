from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.torchvision_ops import child_environment
from models.source_tiny import Tiny
from safetensors.torch import save_file

from tokexport.exporter.errors import SourceError
from tokexport.exporter.source import SourceOptions, load_source


def refusal(name: str) -> str:
    with pytest.raises(SourceError) as caught:
        load_source(SourceOptions(name))
    return str(caught.value)


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    for name in (str(tmp_path / "model.pt"), "model.pt", "folder/model"):
        message = refusal(name)
        assert "The file does not exist" in message
        assert name in message
        assert "A source is a file" in message


def test_a_name_that_means_nothing() -> None:
    for name in ("resnet", ""):
        message = refusal(name)
        assert f"There is no source named {name!r}" in message
        assert "timm:NAME" in message


def test_safetensors_alone_need_a_builder(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    message = refusal(str(tmp_path / "x.safetensors"))
    assert "The file holds weights without the model they belong to" in message
    assert "--builder package.module:factory" in message


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(Tiny(), path)
    source = load_source(SourceOptions(str(path), trust_pickle=True))
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, tokexport.exporter.source; "
        "heavy = {'torch', 'timm', 'transformers', 'safetensors', 'onnx'} & set(sys.modules); "
        "print(sorted(heavy))"
    )
    done = run(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_no_source_warns(tmp_path: Path, models: tuple[Path, ...]) -> None:
    """Reads every kind in one process in which warnings are errors."""
    model = Tiny()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.save(model, tmp_path / "model.pt")
    torch.save(model, tmp_path / "plain.pt", _use_new_zipfile_serialization=False)
    torch.export.save(torch.export.export(model, (torch.ones(2, 4),)), tmp_path / "model.pt2")
    code = f"""
from pathlib import Path
from tokexport.exporter.source import *
folder = Path({str(tmp_path)!r})
models = tuple(map(Path, {[str(models[0]), str(models[0].parent)]!r}))
for options in (
    SourceOptions(str(folder / "state.pt"), models, builder="source_tiny:build"),
    SourceOptions(str(folder / "model.pt"), models, trust_pickle=True),
    SourceOptions(str(folder / "plain.pt"), models, trust_pickle=True),
    SourceOptions(str(folder / "model.pt2")),
    SourceOptions("source_tiny:with_tensor", models),
    SourceOptions("timm:vit_tiny_patch16_224"),
):
    print(load_source(options).kind)
"""
    done = run(code)
    assert done.stderr == ""
    assert done.stdout.split() == [
        *("checkpoint", "saved-module", "saved-module"),
        *("exported-program", "factory", "timm"),
    ]


@pytest.mark.parametrize("name", ["a" * 5000, f"{'a' * 300}.pt", "a/" * 3000])
def test_a_name_that_no_file_can_have(name: str) -> None:
    for options in (
        SourceOptions(name),
        SourceOptions("models.source_tiny:build", checkpoint=Path(name)),
    ):
        with pytest.raises(SourceError, match="cannot be looked for: File name too long") as error:
            load_source(options)
        assert len(str(error.value)) < 1000
