from __future__ import annotations

import argparse
import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokexport.exporter.errors import SourceError
from tokexport.exporter.source.files.inert_pickle import TensorRecord
from tokexport.exporter.source.files.torch_file import read_torch_file

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.fixture(params=[True, False], ids=["zip", "plain"])
def zipped(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def save(value: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def read(path: Path) -> Any:
    """Reads a file, its tensors for real."""
    file = read_torch_file(path)

    def fill(value: Any) -> Any:
        if isinstance(value, TensorRecord):
            return file.tensor(value)
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        return value

    return fill(file.root)


def same(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.contiguous().view(torch.uint8).equal(other.contiguous().view(torch.uint8))
    )


def test_every_dtype(tmp_path: Path, zipped: bool) -> None:
    numbers = torch.randint(0, 2, (64,), dtype=torch.uint8)
    value = {str(dtype): numbers.clone().view(dtype) for dtype in DTYPES}
    found = read(save(value, tmp_path / "x.pt", zipped))
    assert all(same(found[name], value[name]) for name in value)


def test_views_of_one_storage(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    value = {
        "base": base,
        "transposed": base.t(),
        "part": base[1:3, ::2],
        "expanded": base[:, :1].expand(4, 5),
        "scalar": base[2, 3],
        "empty": base[:0],
    }
    found = read(save(value, tmp_path / "x.pt", zipped))
    for name in value:
        assert found[name].equal(value[name]), name
        assert found[name].stride() == value[name].stride() or name == "empty"
    assert found["part"].untyped_storage().data_ptr() == found["base"].untyped_storage().data_ptr()


def test_parameters_and_unknown_objects(tmp_path: Path, zipped: bool) -> None:
    value = {
        "weight": torch.nn.Parameter(torch.ones(2, 2)),
        "args": argparse.Namespace(out=tmp_path),
        "epoch": 3,
    }
    file = read_torch_file(save(value, tmp_path / "x.pt", zipped))
    assert file.tensor(file.root["weight"]).equal(torch.ones(2, 2))
    assert file.root["epoch"] == 3
    assert "argparse.Namespace" in file.origins


def test_writing_to_a_tensor_leaves_the_file(tmp_path: Path, zipped: bool) -> None:
    path = save({"x": torch.ones(8)}, tmp_path / "x.pt", zipped)
    before = path.read_bytes()
    read(path)["x"].zero_()
    assert path.read_bytes() == before
    assert read(path)["x"].equal(torch.ones(8))


def test_an_archive_packed_again_with_compression(tmp_path: Path) -> None:
    path = save({"x": torch.arange(100.0)}, tmp_path / "x.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info), zipfile.ZIP_DEFLATED)
    assert read(tmp_path / "y.pt")["x"].equal(torch.arange(100.0))


def rewrite(path: Path, edit: dict[str, bytes]) -> Path:
    """Writes the archive again, with entries (by the end of their names) in place of its own."""
    out = path.with_name("edited.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            ends = [end for end in edit if info.filename.endswith(end)]
            new.writestr(info.filename, edit[ends[0]] if ends else old.read(info))
    return out


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    path = save({"x": torch.ones(8)}, tmp_path / "x.pt")
    with pytest.raises(SourceError) as caught:
        read(rewrite(path, {"data/0": b"\0" * 28}))
    assert "cut short or damaged" in str(caught.value)
    assert "shape (8,) needs 32 bytes of a storage of 28" in str(caught.value)


def test_a_storage_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = save({"x": torch.ones(8)}, tmp_path / "x.pt")
    out = tmp_path / "y.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            if not info.filename.endswith("data/0"):
                new.writestr(info.filename, old.read(info))
    with pytest.raises(SourceError, match="the storage '0' is not in it"):
        read(out)


def test_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    path = rewrite(save({"x": torch.ones(8)}, tmp_path / "x.pt"), {"byteorder": b"big"})
    with pytest.raises(SourceError, match="other byte order"):
        read(path)


def test_a_plain_file_cut_short_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    path = save({"x": torch.ones(8), "y": torch.ones(3)}, tmp_path / "x.pt", zipped=False)
    data = path.read_bytes()
    for end in range(30, len(data), 7):
        path.write_bytes(data[:end])
        with pytest.raises(SourceError, match="cut short or damaged"):
            read(path)


def test_a_plain_file_that_lies_about_a_length_is_refused(tmp_path: Path) -> None:
    path = save({"x": torch.ones(8)}, tmp_path / "x.pt", zipped=False)
    data = path.read_bytes()
    assert data.count(struct.pack("<q", 8)) == 1
    path.write_bytes(data.replace(struct.pack("<q", 8), struct.pack("<q", 2**60)))
    with pytest.raises(SourceError, match="cut short or damaged"):
        read(path)


def test_random_damage_never_escapes_as_another_error(tmp_path: Path, zipped: bool) -> None:
    buffer = io.BytesIO()
    value = {"x": torch.ones(8), "args": argparse.Namespace(a=1)}
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    data = buffer.getvalue()
    start = data.index(b"argparse") - 60
    path = tmp_path / "x.pt"
    for position in range(start, start + 120):
        for flip in (0x01, 0x20, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            try:
                read(path)
            except SourceError:
                continue


@pytest.mark.parametrize(
    ("shape", "stride", "offset", "said"),
    [
        ((2**62, 2**62, 0), (0, 0, 0), 0, "a tensor of shape"),
        ((2**62, 2**62), (0, 0), 0, "a tensor of shape"),
        ((2**70,), (0,), 0, "a tensor whose sizes or strides are none"),
        ((2,), (1,), 2**63, "a tensor whose sizes or strides are none"),
    ],
)
def test_sizes_that_overflow_are_damage(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int, said: str, tmp_path: Path
) -> None:
    class Rebuilt:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = torch.ones(4)._typed_storage()
            return torch._utils._rebuild_tensor_v2, (storage, offset, shape, stride, False, {})

    with pytest.raises(SourceError, match=said):
        read(save({"w": Rebuilt()}, tmp_path / "x.pt"))
