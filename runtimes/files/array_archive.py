"""Reads arrays from an untrusted ``.npz`` or ``.npy`` file.

Every size is checked against the bytes of the file before memory is taken, nothing is unpickled,
and only the wanted arrays are read. The formats are those of ``numpy.lib.format`` and of ZIP.
"""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO, Final

import numpy as np
from numpy.lib import format as npy

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.files.zip_bounds import unpacks_too_far

#: The longest header, as NumPy has it; a longer one is slow to parse.
_LONGEST_HEADER: Final = 10_000
_MOST_MEMBERS: Final = 100_000
_SUFFIX: Final = ".npy"
_ENCRYPTED: Final = 0x1
_HEADERS: Final[dict[tuple[int, int], Callable[..., Any]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}
#: Numbers, truth values and texts.
_KINDS: Final = "biufcSU"


class ArchiveError(ValueError):
    """A file of arrays is damaged or of another format.

    Attributes:
        member: The array at fault; empty where it is the file.
        pickled: Whether it holds python objects, which would run code when loaded.
    """

    def __init__(self, what: str, member: str = "", *, pickled: bool = False) -> None:
        super().__init__(what)
        self.member = member
        self.pickled = pickled


class Archive:
    """The arrays of an open ``.npz``, read one by one.

    Args:
        file: The file; stays open as long as arrays are read.
        packed: Whether arrays may be compressed: a small file may hold a large array then.

    Raises:
        ArchiveError: It is no ``.npz``, a name stands twice, a member cannot be an array, or it
            unpacks to a hundred times its bytes.
    """

    def __init__(self, file: BinaryIO, *, packed: bool = True) -> None:
        with _worded():
            self._zip = zipfile.ZipFile(file)
        self._members: dict[str, zipfile.ZipInfo] = {}
        if len(self._zip.infolist()) > _MOST_MEMBERS:
            raise ArchiveError(f"it has more than {_MOST_MEMBERS:,} members")
        if why := unpacks_too_far(self._zip, file.seek(0, io.SEEK_END)):
            raise ArchiveError(why)
        for info in self._zip.infolist():
            if not info.filename.endswith(_SUFFIX):
                raise ArchiveError("it is a zip archive but not an .npz", info.filename)
            name = info.filename.removesuffix(_SUFFIX)
            if name in self._members:
                raise ArchiveError(f"it holds two arrays named {name!r}", name)
            if info.flag_bits & _ENCRYPTED:
                raise ArchiveError("the array is encrypted", name)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or (
                info.compress_type != zipfile.ZIP_STORED and not packed
            ):
                raise ArchiveError("the array is compressed in a way that is not read here", name)
            self._members[name] = info

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays, in the order of the file."""
        return tuple(self._members)

    def read(self, name: str) -> Array:
        """Reads an array.

        Args:
            name: One of the names.

        Raises:
            ArchiveError: It is damaged, of python objects, or its header does not fit its bytes.
            MemoryError: It does not fit into memory.
        """
        info = self._members[name]
        with _worded(name), self._zip.open(info) as member:
            return _array(member, info.file_size)


#: The errors of zipfile, zlib and header parsing on damaged bytes.
_DAMAGED: Final = (
    *(zipfile.BadZipFile, zlib.error, ValueError, KeyError, OSError, EOFError),
    *(NotImplementedError, RuntimeError, RecursionError, SyntaxError, TypeError, OverflowError),
)


def read_npy(file: BinaryIO) -> Array:
    """Reads the one array of an ``.npy`` file.

    Args:
        file: The open file, at its beginning.

    Raises:
        ArchiveError: It is damaged, of python objects, or its header does not fit its bytes.
        MemoryError: It does not fit into memory.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    with _worded():
        return _array(file, size)


@contextmanager
def _worded(member: str = "") -> Iterator[None]:
    """Raises errors of damaged files as ArchiveError, with the name of the array."""
    try:
        yield
    except ArchiveError as error:
        error.member = error.member or member
        raise
    except _DAMAGED as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArchiveError(said, member) from error


def _array(stream: IO[bytes], size: int) -> Array:
    """Reads an array of a number of bytes, header included."""
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ArchiveError(f"the format {version} of the array is not known")
    counted = _Counted(stream)
    try:
        shape, turned, dtype = _HEADERS[version](counted, max_header_size=_LONGEST_HEADER)
    except (*_DAMAGED, tokenize.TokenError, MemoryError) as error:  # the last of parentheses
        raise ArchiveError("the header of the array says no type and shape") from error
    if dtype.hasobject:
        raise ArchiveError("it holds python objects, which are pickled", pickled=True)
    if dtype.kind not in _KINDS or dtype.subdtype is not None or dtype.itemsize == 0:
        raise ArchiveError(f"its type {str(dtype):.40} is not one of numbers")
    if any(isinstance(length, bool) or length < 0 for length in shape):
        raise ArchiveError(f"its shape is {str(shape):.40}")
    count = math.prod(shape)
    left = size - npy.MAGIC_LEN - counted.taken
    if count * dtype.itemsize != left:
        raise ArchiveError(
            f"its header says {str(dtype):.40} {str(shape):.80}, and {left} bytes are there"
        )
    flat = np.empty(count, dtype)
    view = flat.view(np.uint8).data
    done = 0
    while done < len(view):
        read = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not read:
            raise ArchiveError("it ends before its last number")
        done += read
    if stream.read(1):  # and a zip member is held to its checksum at its end
        raise ArchiveError("it goes on behind its last number")
    return flat.reshape(shape[::-1]).T if turned else flat.reshape(shape)


class _Counted:
    """A stream that counts the bytes that are read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.taken = 0

    def read(self, size: int = -1) -> bytes:
        """Reads at most so many bytes."""
        found = self._stream.read(size)
        self.taken += len(found)
        return found
