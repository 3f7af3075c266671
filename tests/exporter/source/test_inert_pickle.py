from __future__ import annotations

import argparse
import collections
import io
import pickle
import sys
import tracemalloc
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from tokexport.exporter.source.inert_pickle import Inert, InertUnpickler, TensorRecord


class Touch:
    """Makes a file when it is unpickled for real."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def read(data: bytes) -> tuple[Any, list[str]]:
    unpickler = InertUnpickler(io.BytesIO(data))
    return unpickler.load(), unpickler.origins


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back_as_they_were(protocol: int) -> None:
    value = {
        "numbers": [1, -2, 3.5, True, None, 2**70, 1j],
        "text": "ä",
        "bytes": b"\x00\xff",
        "nested": (1, {2, 3}, frozenset({4}), collections.OrderedDict(a=1)),
    }
    found, origins = read(pickle.dumps(value, protocol))
    assert found == value
    assert origins == []
    assert type(found["nested"][3]) is collections.OrderedDict


@pytest.mark.parametrize("protocol", range(6))
def test_every_other_name_becomes_inert(protocol: int) -> None:
    value = {
        "args": argparse.Namespace(lr=0.1, out=PurePosixPath("/x")),
        "scalar": np.float32(3),
        "counts": collections.Counter("aab"),
        "defaults": collections.defaultdict(list, a=[1]),
    }
    found, origins = read(pickle.dumps(value, protocol))
    assert all(isinstance(item, Inert) for item in found.values())
    assert {"argparse.Namespace", "pathlib.PurePosixPath"} <= set(origins)
    if protocol > 1:  # before that, every object is made by copyreg._reconstructor
        assert found["args"].origin == "argparse.Namespace"


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_called(protocol: int, marker: Path) -> None:
    data = pickle.dumps(Touch(marker), protocol)
    read(data)
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists()


def test_nothing_is_imported() -> None:
    sys.modules.pop("wave", None)
    found, origins = read(b"cwave\nopen\n(S'x'\ntR.")
    assert isinstance(found, Inert)
    assert origins == ["wave.open"]
    assert "wave" not in sys.modules


def test_a_chain_of_calls_stays_inert(marker: Path) -> None:
    # builtins.getattr(os, "system")("touch …"): every link is a placeholder.
    data = b"cbuiltins\ngetattr\n(cos\nenviron\nS'x'\ntR(S'touch " + bytes(marker) + b"'\ntR."
    found, _ = read(data)
    assert isinstance(found, Inert)
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        # BUILD with attributes for a function, a record of a type and an ordered dict's class.
        b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'_make'\nI1\nstb.",
        b"ctorch\nfloat32\n(N}S'name'\nI1\nstb.",
        b"ccollections\nOrderedDict\n(N}S'get'\nI1\nstb.",
    ],
)
def test_what_is_shared_cannot_be_changed(data: bytes) -> None:
    with pytest.raises((pickle.UnpicklingError, AttributeError, TypeError)):
        read(data)
    assert callable(collections.OrderedDict.get)
    again = InertUnpickler(io.BytesIO(b"ctorch\nfloat32\n.")).load()
    assert again.name == "float32"


@pytest.mark.parametrize(
    "call",
    [
        b"(I1\nI0\n(I2\nt(I1\ntI00\nNt",  # the storage is a number
        b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQI-1\n(I2\nt(I1\ntI00\nNt",
        b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQI0\n(I2\nt(I-1\ntI00\nNt",
        b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQI0\n(I2\nI2\nt(I1\ntI00\nNt",
        b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI-4\ntQI0\n(I2\nt(I1\ntI00\nNt",
        b"((S'storage'\ncos\nsystem\nS'0'\nS'cpu'\nI4\ntQI0\n(I2\nt(I1\ntI00\nNt",
    ],
)
def test_a_damaged_tensor_is_refused(call: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        read(b"ctorch._utils\n_rebuild_tensor_v2\n" + call + b"R.")


def test_a_tensor_becomes_a_record() -> None:
    found, _ = read(
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        b"((S'storage'\nctorch\nHalfStorage\nS'7'\nS'cpu'\nI9\ntQI1\n(I2\nI3\nt(I1\nI2\ntI00\nNtR."
    )
    assert isinstance(found, TensorRecord)
    assert found.storage.key == "7"
    assert (found.dtype, found.offset, found.shape, found.stride) == ("float16", 1, (2, 3), (1, 2))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x80\x02}r\xff\xff\xff\x7f.", "a memo of 2147483647 places"),
        (b"\x80\x02}p2000000000\n.", "a memo of 2000000000 places"),
        (b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\2\x85R.", "of 8589934592 zeros"),
        (b"\x80\x05\x96\0\0\0\0\2\0\0\0.", "expected 8589934592 bytes"),
    ],
)
def test_no_memory_is_taken_for_bytes_that_are_not_there(data: bytes, said: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((pickle.UnpicklingError, ValueError), match=said):
            read(data)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_000_000


@pytest.mark.parametrize("protocol", range(6))
def test_a_bytearray_comes_back(protocol: int) -> None:
    value = [bytearray(b"\x00\xff"), bytearray()]
    assert read(pickle.dumps(value, protocol))[0] == value
