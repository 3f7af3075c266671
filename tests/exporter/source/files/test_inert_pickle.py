from __future__ import annotations

import argparse
import collections
import contextlib
import io
import pickle
import sys
import tracemalloc
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from tokexport.exporter.source.files.inert_pickle import Inert, InertUnpickler, TensorRecord


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


def tower(begin: bytes) -> bytes:
    """Opcodes of a pair of a pair of … of two, the same one twice at each of 60 levels."""
    return begin + b"".join(bytes([113, level, 104, level, 0x86]) for level in range(60))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a place in a memo
        b"\x80\x02}p2000000000\n.",
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\2\x85R.",
        b"\x80\x05\x96\0\0\0\0\2\0\0\0.",  # lengths of 8 GiB
        b"\x80\x04\x8e\0\0\0\0\2\0\0\0.",
        b"\x80\x04\x95\0\0\0\0\2\0\0\0.",
    ],
)
def test_no_memory_is_taken_for_bytes_that_are_not_there(data: bytes) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(pickle.UnpicklingError, EOFError, IndexError):
            read(data)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_000_000


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}" + tower(b"K\x01") + b"K\x01s.",
        b"\x80\x02}(" + tower(b"K\x01") + b"K\x01u.",
        b"\x80\x02}K\x01" + b"\x85" * 500_000 + b"K\x01s.",
        b"\x80\x04\x8f(K\x01" + b"\x85" * 500_000 + b"\x90.",
        b"\x80\x04(K\x01" + b"\x85" * 500_000 + b"\x91.",
        b"\x80\x02(K\x01" + b"\x85" * 500_000 + b"K\x01d.",
        b"\x80\x02cbuiltins\nfrozenset\n]" + tower(b"K\x01") + b"a\x85R.",
        b"\x80\x02cbuiltins\nstr\n" + tower(b"]") + b"\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n]" + tower(b"K\x01") + b"K\x01\x86a\x85R.",
    ],
)
def test_what_is_built_of_others_without_end_is_not_hashed_or_written(data: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="a key that is built|str of an object"):
        read(data)


@pytest.mark.parametrize("protocol", range(6))
def test_a_bytearray_comes_back(protocol: int) -> None:
    value = [bytearray(b"\x00\xff"), bytearray()]
    assert read(pickle.dumps(value, protocol))[0] == value
