"""Reads the arrays of an ``.npz`` or ``.npy`` file, and runs nothing that came with it."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tokexport.exporter.errors import InputError, listed

_MAGICS = (b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")
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
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"The inputs file {what}.", where=str(path), fix="Pass an .npz file.")
    found: dict[str, np.ndarray] = {}
    member = ""
    try:
        with path.open("rb") as file:
            if not file.read(8).startswith(_MAGICS):
                raise InputError(
                    "The inputs file is not an .npz or .npy.", where=str(path), fix=_HOW
                )
            file.seek(0)
            loaded: Any = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            for member in loaded.files:
                found[member] = loaded[member]
    except MemoryError as error:
        raise InputError(
            "The inputs do not fit into memory.", where=_at(path, member), fix="Pass fewer samples."
        ) from error
    except PermissionError as error:
        raise InputError(
            "The inputs file may not be read.", where=str(path), fix="Check its permissions."
        ) from error
    except (
        ValueError,
        EOFError,
        KeyError,
        OSError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise _unreadable(path, member, error) from error
    twice = sorted({name for name in loaded.files if loaded.files.count(name) > 1})
    if twice:
        raise InputError(
            f"The inputs file holds two arrays named {twice[0]!r}.", where=str(path), fix=_HOW
        )
    # A zip member without the format's magic comes back as bytes: the file is another archive.
    strange = [name for name, value in found.items() if not isinstance(value, np.ndarray)]
    if strange:
        raise InputError(
            "The inputs file is a zip archive but not an .npz.",
            where=f"{path}, which holds {listed(strange, 3)}",
            fix=_HOW,
        )
    return found


def _unreadable(path: Path, member: str, error: Exception) -> InputError:
    """Words what numpy and zipfile say about a file they cannot take."""
    if "allow_pickle" in str(error):
        return InputError(
            "The inputs hold pickled objects, which would run code when loaded.",
            where=_at(path, member),
            fix="Save plain numeric arrays: array.astype(numpy.float32)",
        )
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        "The inputs file is damaged.", where=f"{_at(path, member)} ({said})", fix=_HOW
    )


def _at(path: Path, member: str) -> str:
    return f"{path}, array {member!r}" if member else str(path)
