"""Crafts files of inputs: arrays, archives of arrays, images, folders, pipes and links."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
from attacks.honest_sources import Craft, Crafted, Honest
from attacks.values import COUNTS, damaged, text

_TYPES: Final = (
    "<f4",
    ">f4",
    "<f8",
    ">f2",
    "|O",
    "<U9",
    "<M8[s]",
    "<c8",
    "|V4",
    "<i8",
    "?",
    "f4,f4",
)
_STARTS: Final = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"GIF89a",
    b"BM",
    b"%PDF",
    b"\x80\x04]q\x00.",
    b"\x1f\x8b",
    b"MATLAB 5.0",
    b"",
)


def _npy(descr: str, shape: str, body: bytes) -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def _handed(what: str, path: Path) -> Crafted:
    return Crafted(what, inputs=path)


def _bytes(random: Random, place: Path, honest: Honest) -> Crafted:
    """Damages bytes of samples."""
    content, done = damaged(honest.inputs.read_bytes(), random)
    made = place / "x.npz"
    made.write_bytes(content)
    return _handed(f"samples: {done}", made)


def _header(random: Random, place: Path, honest: Honest) -> Crafted:
    """Declares a type and shape that the file does not have."""
    kind = random.choice(_TYPES)
    sizes = ", ".join(str(random.choice((*COUNTS, 4))) for _ in range(random.choice((0, 1, 2, 40))))
    array = _npy(kind, f"({sizes}{',' if sizes else ''})", bytes(random.choice((0, 16, 64))))
    made = place / random.choice(("x.npy", "x.npz"))
    if made.suffix == ".npy":
        made.write_bytes(array)
    else:
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr("x.npy", array)
    return _handed(f"{made.name} of {kind} ({sizes:.60})", made)


def _values(random: Random, place: Path, honest: Honest) -> Crafted:
    """Holds numbers of other types, shapes and byte orders, or none at all."""
    made = place / "x.npz"
    shape = random.choice(((4, 4), (4,), (0, 4), (4, 4, 1), (4, 0), (), (1, 4), (4, 5)))
    kind = random.choice((">f4", "<f4", ">f8", "<f2", "<c8", "<i8", "?", "<U3", ">i2"))
    array = np.ones(shape, np.dtype(kind) if kind != "<U3" else np.dtype("<U3"))
    if array.dtype.kind == "f" and array.size and random.random() < 0.4:
        array.flat[0] = random.choice((np.nan, np.inf, -0.0))
    names = [random.choice(("x", "x", "y", "labels", text(random).replace("\x00", "")))]
    names += ["labels"] if random.random() < 0.3 else []
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            with archive.open(zipfile.ZipInfo(f"{name or 'x'}.npy"[:60_000]), "w") as file:
                np.lib.format.write_array(file, array)
    return _handed(f"{names!r:.40} of {kind} {shape}", made)


def _bomb(random: Random, place: Path, honest: Honest) -> Crafted:
    """Packs hundreds of MB of zeros into samples, or into an array that nobody asks for."""
    made = place / "x.npz"
    megabytes = random.choice((300, 500))
    name = random.choice(("x", "other", "labels"))
    shape = f"({megabytes << 16}, 4)" if name == "x" else f"({megabytes << 18},)"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        if name != "x":
            archive.writestr("x.npy", _npy("<f4", "(4, 4)", bytes(64)))
        with archive.open(f"{name}.npy", "w") as file:
            file.write(_npy("<f4", shape, b""))
            for _ in range(megabytes):
                file.write(bytes(1 << 20))
    return _handed(f"{name} of {megabytes} MB of zeros", made)


def _no_arrays(random: Random, place: Path, honest: Honest) -> Crafted:
    """Hands over an image, a folder of images, a pipe, a device or a link."""
    made = place / random.choice(("x.npz", "x.png", "images"))
    way = random.choice(
        ("pipe", "/dev/zero", "/dev/stdin", "loop", "gone", "folder", "file", "file")
    )
    if way == "pipe":
        os.mkfifo(made)
    elif way == "folder":
        made.mkdir()
        (made / "a.png").write_bytes(_STARTS[0])
    elif way == "file":
        start = random.choice(_STARTS)
        made.write_bytes(start + random.randbytes(99))
        way = f"{start!r}"
    elif way != "gone":
        made.symlink_to({"loop": made}.get(way, Path(way)))
    return _handed(f"{way} as {made.name}", made)


ARRAYS: Final[tuple[Craft, ...]] = (
    _bytes,
    _bytes,
    _header,
    _header,
    _values,
    _values,
    _bomb,
    _no_arrays,
)
