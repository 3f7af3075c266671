from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tokexport.exporter.errors import SourceError
from tokexport.exporter.source.files.file_kind import FileKind, file_kind


def test_each_kind_is_known_by_its_bytes(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    torch.save(model, tmp_path / "zip")
    torch.save(model, tmp_path / "plain", _use_new_zipfile_serialization=False)
    save_file({"x": torch.ones(2)}, tmp_path / "tensors")
    program = torch.export.export(model, (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "program.pt2")
    (tmp_path / "program.pt2").rename(tmp_path / "program")
    assert file_kind(tmp_path / "zip") is FileKind.TORCH_SAVE
    assert file_kind(tmp_path / "plain") is FileKind.TORCH_SAVE
    assert file_kind(tmp_path / "tensors") is FileKind.SAFETENSORS
    assert file_kind(tmp_path / "program") is FileKind.EXPORTED_PROGRAM


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_torchscript_archive(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "x.pt"))
    assert file_kind(tmp_path / "x.pt") is FileKind.TORCHSCRIPT


def test_the_old_layout_of_a_program(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("version", "8.7")
    assert file_kind(tmp_path / "x.pt2") is FileKind.OLD_EXPORTED_PROGRAM


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("x.pt", b"", "empty (0 bytes)"),
        ("x.pt", b"\x89PNG\r\n\x1a\n" + bytes(100), "an image (PNG)"),
        ("x.jpg", b"\xff\xd8\xff\xe0" + bytes(100), "an image (JPEG)"),
        ("x.pt", b"hello\n", "a text file"),
        ("x.txt", "schön ".encode() * 200, "a text file"),
        ("x.py", b"def build(): ...\n", "Python source: name the function in it as x:FUNCTION"),
        ("x.pt", b"version https://git-lfs.github.com/spec/v1\noid", "run git lfs pull"),
        ("x.pt", b"<!DOCTYPE html><html>", "a web page"),
        ("x.onnx", b"\x08\x07\x12\x07pytorch", "an ONNX model"),
        ("x.pt", pickle.dumps([1, 2]), "a pickle that torch.save did not write"),
        ("x.pt", bytes(range(256)) * 4, "a kind that tokexport does not know"),
        ("x.pt", b"\x1f\x8b\x08" + bytes(30), "gzip"),
    ],
)
def test_what_is_not_a_model_is_named(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SourceError) as caught:
        file_kind(path)
    message = str(caught.value)
    assert "The file is not a model: it is" in message
    assert what in message
    assert str(path) in message
    assert "package.module:factory" in message


def test_archives_of_other_programs(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    with pytest.raises(SourceError, match=r"numpy arrays \(.npz\)"):
        file_kind(tmp_path / "x.npz")
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("word/document.xml", "x")
    with pytest.raises(SourceError, match="a zip archive of files"):
        file_kind(tmp_path / "y.zip")


def test_files_cut_short(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(20, 20), tmp_path / "x.pt")
    save_file({"x": torch.ones(100)}, tmp_path / "x.safetensors")
    for name, keep in (("x.pt", 900), ("x.safetensors", 30)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(SourceError) as caught:
            file_kind(path)
        assert "cut short or damaged" in str(caught.value)
        assert "download it again" in str(caught.value)


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    for path in (tmp_path / "model.pt", Path("/dev/zero")):
        with pytest.raises(SourceError, match="a pipe, a socket or a device, not a file"):
            file_kind(path)


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(70 << 20))
    with pytest.raises(SourceError, match="bytes unpack to 73,400,320"):
        file_kind(path)
