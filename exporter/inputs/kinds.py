"""Decides what kind of inputs a path holds: arrays, or pictures as a folder, a list or one file."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Final

from tokexport.exporter.errors import InputError
from tokexport.runtimes.files.regular_files import open_regular

_NPY: Final = b"\x93NUMPY"
_ZIP: Final = (b"PK\x03\x04", b"PK\x05\x06")
#: Suffixes of files that are taken for pictures; what they hold decides how they are decoded.
PICTURES: Final = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "tif", "tiff", "bmp", "gif"),
        *("ppm", "pgm", "pbm", "pnm", "avif", "jp2"),
    )
)
LISTS: Final = frozenset((".csv", ".tsv"))
#: What ``--inputs`` takes, as the end of a sentence.
TAKEN: Final = (
    "an .npz or .npy of arrays, a folder of pictures, a .csv of files and labels, or a picture."
)


class Kind(Enum):
    """What kind of inputs a path holds."""

    NPY = "one array"
    ARCHIVE = "arrays by name"
    FOLDER = "a folder of pictures"
    LIST = "a list of pictures"
    PICTURE = "a picture"

    @property
    def of_pictures(self) -> bool:
        """Whether it holds pictures, not arrays."""
        return self not in (Kind.NPY, Kind.ARCHIVE)


def kind_of_inputs(path: Path) -> Kind:
    """Returns what kind of inputs a path holds.

    A folder holds pictures. The first bytes of a file decide whether it holds arrays; its suffix,
    whether it is a list or a picture.

    Args:
        path: The file or folder.

    Raises:
        InputError: It is missing, may not be read, or is none of them.
    """
    if path.is_dir():
        return Kind.FOLDER
    try:
        with open_regular(path) as file:
            start = file.read(8)
    except FileNotFoundError as error:
        raise InputError(
            "The inputs file does not exist.", where=str(path), fix=f"Pass {TAKEN}"
        ) from error
    except PermissionError as error:
        raise InputError(
            "The inputs file may not be read.", where=str(path), fix="Check its permissions."
        ) from error
    except OSError as error:
        raise InputError(
            "The inputs file cannot be read.",
            where=f"{path} ({error.strerror})",
            fix=f"Pass {TAKEN}",
        ) from error
    if start.startswith(_NPY):
        return Kind.NPY
    if start.startswith(_ZIP):
        return Kind.ARCHIVE
    if path.suffix.lower() in LISTS:
        return Kind.LIST
    if path.suffix.lower() in PICTURES:
        return Kind.PICTURE
    raise InputError(
        "The inputs file is not an .npz or .npy, a .csv, or a picture.",
        where=str(path),
        fix="Save arrays with numpy.savez(path, name=array), or pass a folder of pictures.",
    )
