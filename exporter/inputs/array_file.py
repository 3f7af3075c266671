"""Reads the arrays of an ``.npz`` or ``.npy`` file, and runs nothing that came with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tokexport.exporter.errors import InputError
from tokexport.runtimes.files.array_archive import Archive, ArchiveError, read_npy
from tokexport.runtimes.files.regular_files import open_regular

_NPY = b"\x93NUMPY"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_HOW = "Save the arrays with numpy.savez(path, name=array)"


def read_arrays(path: Path) -> dict[str, np.ndarray] | np.ndarray:
    """Reads a file of arrays.

    Args:
        path: The file; what it is, its first bytes say, not its suffix.

    Returns:
        The arrays of an ``.npz`` by their names, or the one array of an ``.npy``.

    Raises:
        InputError: The file is missing, no such file, damaged, too large for the memory, or holds
            pickled objects.
    """
    try:
        if path.is_dir() or not path.exists():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise InputError(f"The inputs file {what}.", where=str(path), fix="Pass an .npz file.")
        with open_regular(path) as file:
            start = file.read(8)
            if not start.startswith((_NPY, *_ZIP)):
                raise InputError(
                    "The inputs file is not an .npz or .npy.", where=str(path), fix=_HOW
                )
            file.seek(0)
            if start.startswith(_NPY):
                return read_npy(file)
            archive = Archive(file)
            return {name: archive.read(name) for name in archive.names}
    except MemoryError as error:
        raise InputError(
            "The inputs do not fit into memory.", where=str(path), fix="Pass fewer samples."
        ) from error
    except PermissionError as error:
        raise InputError(
            "The inputs file may not be read.", where=str(path), fix="Check its permissions."
        ) from error
    except OSError as error:
        raise InputError(
            "The inputs file cannot be read.", where=f"{path} ({error.strerror})", fix=_HOW
        ) from error
    except ArchiveError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: ArchiveError) -> InputError:
    where = f"{path}, array {error.member!r}" if error.member else str(path)
    if error.pickled:
        return InputError(
            "The inputs hold pickled objects, which would run code when loaded.",
            where=where,
            fix="Save plain numeric arrays: array.astype(numpy.float32)",
        )
    return InputError(f"The inputs file cannot be read: {error}.", where=where, fix=_HOW)
