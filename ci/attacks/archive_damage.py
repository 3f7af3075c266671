"""Damages the file of reference arrays: the archive, its members, and their headers."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from attacks.values import count, damaged, text

_MAGIC: Final = b"\x93NUMPY\x01\x00"
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
#: Fields of a member's headers: their places in the central directory and before the member.
_FIELDS: Final = {
    "the flags": (8, 6, 2),
    "the method": (10, 8, 2),
    "the checksum": (16, 14, 4),
    "the packed size": (20, 18, 4),
    "the size": (24, 22, 4),
    "the length of the name": (28, 26, 2),
    "the length of extra fields": (30, 28, 2),
    "the version": (6, 4, 2),
}
_HEADERS: Final = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9223372036854775807), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1.0,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 200 + ")" * 200 + ", }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f4', 'fortran_order': 7, 'shape': (1,), }",
    "{'descr': 'no type', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': None, 'shape': (1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1, }",
    "__import__('os').getpid()",
    "{" * 5000,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 3000 + "), }",
    "\x1b[2J",
    "",
    "(1, 2",
    "'" * 999,
    "{'descr': '<U99999999', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '>f4', 'fortran_order': True, 'shape': (1,), }",
)


def damage_archive(random: Random, bundle: Path) -> str:
    """Damages the reference data of a bundle; returns what was done."""
    path = bundle / "reference.npz"
    content = path.read_bytes()
    way = random.random()
    if way < 0.15:
        content, done = damaged(content, random)
    elif way < 0.4:
        content, done = _fields(content, random)
    elif way < 0.8:
        content, done = _members(content, random)
    else:
        content, done = _numbers(content, random)
    path.write_bytes(content)
    return f"reference: {done}"


def _read(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _written(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as archive:
        for name, member in members:
            said = name.encode("utf-8", "replace").decode().partition("\0")[0]
            archive.writestr(said or " ", member)  # zipfile writes no member without a name
    return whole.getvalue()


def _fields(content: bytes, random: Random) -> tuple[bytes, str]:
    """Changes what the archive says of a member, in one place or in both, or of its end."""
    found = bytearray(content)
    central = [at for at in range(len(found)) if found[at : at + 4] == _CENTRAL]
    if random.random() < 0.2:
        at = content.rindex(_END) + random.choice((4, 6, 8, 10, 12, 16, 20))
        size = min(random.choice((2, 4)), len(found) - at)
        found[at : at + size] = random.choice((b"\0\0\0\0", b"\xff\xff\xff\xff"))[:size]
        return bytes(found), f"what the end says at {at}"
    at = random.choice(central)
    (before,) = struct.unpack("<I", found[at + 42 : at + 46])
    name = random.choice([*_FIELDS])
    inside, outside, size = _FIELDS[name]
    small = [1, 8, 9, 12, 14, 93, 99, 0x41, 0x801]
    number = random.choice((*small, 0, 2**31, 2**32 - 1, random.getrandbits(32)))
    packed = struct.pack("<I", number)[:size]
    places = random.choice(((at + inside,), (before + outside,), (at + inside, before + outside)))
    for place in places:
        found[place : place + size] = packed
    return bytes(found), f"{name} = {number} in {len(places)} places"


def _members(content: bytes, random: Random) -> tuple[bytes, str]:
    """Writes the archive anew with another member."""
    members = [*_read(content).items()]
    at = random.randrange(len(members))
    name, member = members[at]
    data = member[member.index(b"\n") + 1 :]
    way = random.randrange(11)
    method = zipfile.ZIP_STORED
    if way <= 2:
        header = random.choice(_HEADERS)
        members[at] = name, _MAGIC + struct.pack("<H", len(header)) + header.encode() + data
        done = f"the header of {name} is {header:.60}"
    elif way == 3:
        members[at] = name, random.choice((b"", b"text", b"\x93NUMPY", b"\x80\x04N.", member[:9]))
        done = f"{name} is no array"
    elif way == 4:
        del members[at]
        done = f"{name} is gone"
    elif way == 5:
        other = text(random)
        members[at] = other, member
        done = f"{name} is called {other!r:.40}"
    elif way == 6:
        version = random.choice((b"\x02\x00", b"\x03\x00", b"\x09\x00", b"\xff\xff"))
        members[at] = name, member[:6] + version + member[8:]
        done = f"{name} is of format {version!r}"
    elif way == 7:
        method = random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        bomb = _npy(np.zeros(1, np.float32)) + bytes(random.choice((0, 50_000_000)))
        members[at] = name, bomb
        done = f"{name} is packed by method {method}, {len(bomb)} bytes"
    elif way == 8:
        members[at] = name, damaged(member, random)[0]
        done = f"{name} is damaged"
    elif way == 9:
        extra = random.choice((1, 1000))
        members += [(f"extra/{one}.npy", member) for one in range(extra)]
        done = f"{extra} members more"
    else:
        whole = _written([*members, ("twice.npy", member)])
        return whole.replace(b"twice.npy", f"{name:.9}".encode().ljust(9, b"y")), "a name twice"
    return _written(members, method), done


def _numbers(content: bytes, random: Random) -> tuple[bytes, str]:
    """Replaces arrays by others."""
    members = {name: np.load(io.BytesIO(member)) for name, member in _read(content).items()}
    name = random.choice([*members])
    array: Any = members[name]
    way = random.randrange(8)
    if way == 0 and array.dtype.kind == "f":
        fill = random.choice((float("nan"), float("inf"), -1.0, 0.0, 3e38))
        array = np.full_like(array, fill)
        done = f"{name} is all {fill}"
    elif way == 1:
        kinds = ("f2", "f8", "i8", "u1", "?", "c8", "S3", "U2", ">f4")
        with np.errstate(all="ignore"):
            array = array.astype(random.choice(kinds))
        done = f"{name} is {array.dtype}"
    elif way == 2:
        axis = random.randrange(array.ndim) if array.ndim else 0
        array = np.repeat(np.atleast_1d(array), random.choice((0, 2, 7)), axis)
        done = f"{name} has shape {array.shape}"
    elif way == 3:
        array = np.asarray(random.choice((0.5, float("nan"), True, "text", b"")))
        done = f"{name} is one value"
    elif way == 4:
        array = np.zeros((0,) * array.ndim, array.dtype)
        done = f"{name} is empty"
    elif way == 5 and array.size:
        array = array.copy()
        with np.errstate(all="ignore"):
            array.flat[random.randrange(array.size)] += array.dtype.type(count(random) % 100 + 1)
        done = f"a number of {name}"
    elif way == 6:
        array = np.asfortranarray(array)[::-1]
        done = f"{name} backwards"
    else:
        array = array.reshape(-1, *[1] * min(array.ndim, 3))
        done = f"{name} has shape {array.shape}"
    members[name] = array
    return _written([(one, _npy(value)) for one, value in members.items()]), done


def _npy(array: Any) -> bytes:
    whole = io.BytesIO()
    np.save(whole, array)
    return whole.getvalue()
