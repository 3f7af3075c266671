"""Reads files of ``torch.save``: runs nothing in them, and reads numbers only when needed.

Two layouts, which differ in the first bytes::

    zip (torch ≥ 1.6)    <name>/data.pkl      the pickle, naming storages by key
                         <name>/data/<key>    the numbers of a storage
                         <name>/byteorder     little or big
    plain (before)       five pickles: magic number, version, machine, object, list of keys;
                         then for each key: count (int64), numbers

The file is mapped into memory, privately: a tensor read from it costs memory only for the pages
that are used, and the system can take these back.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tokexport.exporter.errors import SourceError
from tokexport.exporter.source.files.inert_pickle import (
    DTYPES,
    InertUnpickler,
    StorageRecord,
    TensorRecord,
)
from tokexport.runtimes.files.zip_bounds import unpacks_too_far

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_LOCAL_HEADER = struct.Struct("<26x2H")  # a zip entry's header: the lengths of name and extra field
_COUNT = struct.Struct("<q")
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


class TorchFile:
    """A file of ``torch.save``.

    Args:
        path: The file.
        root: The object in it, tensors as records and unknown objects as placeholders.
        origins: The names in it that were not looked up.
        storages: Where each storage's bytes are: (start, number of bytes), or the bytes.
    """

    def __init__(
        self,
        path: Path,
        root: Any,
        origins: list[str],
        storages: dict[str, tuple[int, int] | bytes],
    ) -> None:
        self.path = path
        self.root = root
        self.origins = tuple(origins)
        self._places = storages
        self._mapped = np.memmap(path, np.uint8, mode="c")
        self._storages: dict[str, Tensor] = {}

    def tensor(self, record: TensorRecord) -> Tensor:
        """Returns the tensor of a record; records of one storage share it.

        Raises:
            SourceError: The record reaches beyond its storage, or the storage is not in the file.
        """
        import torch

        if record.dtype not in DTYPES:
            raise self._damaged(f"a tensor of the unknown type {record.dtype!r}")
        dtype: torch.dtype = getattr(torch, record.dtype)
        storage = self._storage(record.storage)
        offset = record.offset + record.storage.start
        last = sum(
            (size - 1) * step for size, step in zip(record.shape, record.stride, strict=True)
        )
        needed = (offset + last + 1) * dtype.itemsize if 0 not in record.shape else 0
        if needed > storage.numel():
            raise self._damaged(
                f"a tensor of shape {record.shape} needs {needed} bytes of a storage of "
                f"{storage.numel()}"
            )
        if storage.data_ptr() % dtype.itemsize:
            storage = self._storages[record.storage.key] = storage.clone()
        try:
            if 0 in record.shape:
                return torch.empty(record.shape, dtype=dtype)
            return torch.empty(0, dtype=dtype).set_(
                storage.untyped_storage(), offset, record.shape, record.stride
            )
        except (RuntimeError, TypeError, ValueError) as error:  # sizes that overflow 64 bits
            raise self._damaged(f"a tensor of shape {record.shape}") from error

    def _storage(self, record: StorageRecord) -> Tensor:
        """Returns the bytes of a storage, uint8 of shape (bytes,)."""
        import torch

        if record.key not in self._storages:
            place = self._places.get(record.key)
            if place is None:
                raise self._damaged(f"the storage {record.key!r} is not in it")
            if isinstance(place, bytes):
                numbers = np.frombuffer(bytearray(place), np.uint8)
            else:
                numbers = np.asarray(self._mapped[place[0] : place[0] + place[1]])
            self._storages[record.key] = torch.from_numpy(numbers)
        return self._storages[record.key]

    def _damaged(self, why: str) -> SourceError:
        return damaged(self.path, why)


def damaged(path: Path, why: str) -> SourceError:
    """Returns the error for a file of the right kind that is damaged."""
    return SourceError(
        "The file is cut short or damaged.",
        where=f"{path} ({why})",
        fix="Copy or download it again, and compare its size with the original's.",
    )


def is_torch_zip(archive: zipfile.ZipFile) -> bool:
    """Returns whether ``torch.save`` wrote the archive."""
    return any(name.count("/") == 1 and name.endswith("/data.pkl") for name in archive.namelist())


def is_plain_torch(file: IO[bytes]) -> bool:
    """Returns whether a file has the layout before torch 1.6; leaves it after the magic number."""
    try:
        return bool(InertUnpickler(file).load() == _MAGIC_NUMBER)
    except (*_UNREADABLE, OSError):
        return False


def damage_in(data: bytes) -> str:
    """Returns why the pickle in a file of torch cannot be read with bounds; '' if it can.

    Args:
        data: The bytes of a file of either layout, or of a pickle alone.
    """
    try:
        if not data.startswith(b"PK"):
            InertUnpickler(io.BytesIO(data)).load()
            return ""
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if why := unpacks_too_far(archive, len(data)):
                return why
            for name in archive.namelist():
                if name.endswith("/data.pkl"):
                    with archive.open(name) as pickled:
                        InertUnpickler(pickled).load()
    except (*_UNREADABLE, OSError) as error:
        return _said(error)
    return ""


def read_torch_file(path: Path) -> TorchFile:
    """Reads a file that ``torch.save`` wrote, of either layout.

    Raises:
        SourceError: The file is damaged, or of a machine with the other byte order.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        return _read_zip(path) if zipped else _read_plain(path)
    except _UNREADABLE as error:
        raise damaged(path, _said(error)) from error


def _read_zip(path: Path) -> TorchFile:
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        root_name = next(
            name.partition("/")[0]
            for name in archive.namelist()
            if name.count("/") == 1 and name.endswith("/data.pkl")
        )
        order = f"{root_name}/byteorder"
        if order in archive.namelist():
            with archive.open(order) as said:
                if said.read(16).strip() != b"little":
                    raise _other_byte_order(path)
        with archive.open(f"{root_name}/data.pkl") as pickled:
            unpickler = InertUnpickler(pickled)
            root = unpickler.load()
        places: dict[str, tuple[int, int] | bytes] = {}
        prefix = f"{root_name}/data/"
        for info in archive.infolist():
            if not info.filename.startswith(prefix):
                continue
            key = info.filename.removeprefix(prefix)
            if info.compress_type != zipfile.ZIP_STORED:
                if key in unpickler.storages:  # else nothing is in it that anyone reads
                    places[key] = _unpacked(archive, info, unpickler.storages[key])
                continue
            raw.seek(info.header_offset)
            lengths = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
            places[key] = (info.header_offset + _LOCAL_HEADER.size + sum(lengths), info.file_size)
    return TorchFile(path, root, unpickler.origins, places)


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, record: StorageRecord) -> bytes:
    """Returns the bytes of a compressed storage, at most as many as its numbers have."""
    if info.file_size > _bytes_of(record):
        raise pickle.UnpicklingError(f"storage {record.key!r} holds {info.file_size} bytes")
    return archive.read(info)


def _bytes_of(record: StorageRecord) -> int:
    """Returns how many bytes the numbers of a storage take."""
    import torch

    return record.length * (getattr(torch, record.dtype).itemsize if record.dtype else 1)


def _read_plain(path: Path) -> TorchFile:
    with path.open("rb") as file:
        if InertUnpickler(file).load() != _MAGIC_NUMBER or InertUnpickler(file).load() != _VERSION:
            raise pickle.UnpicklingError("unknown layout")
        machine = InertUnpickler(file).load()
        if machine["little_endian"] is not True:
            raise _other_byte_order(path)
        unpickler = InertUnpickler(file)
        root = unpickler.load()
        places: dict[str, tuple[int, int] | bytes] = {}
        for key in InertUnpickler(file).load():
            record = unpickler.storages[key]
            (count,) = _COUNT.unpack(file.read(_COUNT.size))
            if count != record.length:
                raise pickle.UnpicklingError(f"storage {key!r} holds {count} elements")
            places[key] = (file.tell(), _bytes_of(record))
            file.seek(_bytes_of(record), 1)
    return TorchFile(path, root, unpickler.origins, places)


def _other_byte_order(path: Path) -> SourceError:
    return SourceError(
        "The file was written by a machine of the other byte order.",
        where=str(path),
        fix="Save the weights again on a little-endian machine, or as .safetensors.",
    )


def _said(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
