"""Finds the kind of a file from its bytes, before anything in it is used."""

from __future__ import annotations

import codecs
import json
import zipfile
from enum import Enum
from pathlib import Path

from tokexport.exporter.errors import SourceError
from tokexport.exporter.source.files.torch_file import damaged, is_plain_torch, is_torch_zip
from tokexport.runtimes.files.regular_files import open_regular
from tokexport.runtimes.files.zip_bounds import unpacks_too_far

_ACCEPTED = (
    "Pass an exported program (.pt2), package.module:factory, timm:NAME, a transformers folder, "
    "or a checkpoint with --builder."
)
_FOREIGN = (
    (b"\x89PNG", "an image (PNG)"),
    (b"\xff\xd8\xff", "an image (JPEG)"),
    (b"GIF8", "an image (GIF)"),
    (b"BM", "an image (BMP)"),
    (b"RIFF", "an image or sound (RIFF)"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a compiled program"),
    (b"\x89HDF", "an HDF5 file (Keras)"),
    (b"\x93NUMPY", "an array of numpy"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
)
_LONGEST_HEADER = 100_000_000  # bytes; what the safetensors format allows
_UNKNOWN = "a file of a kind that tokexport does not know"
_TEXT = (
    ("version https://git-lfs", "a pointer of Git LFS, not the file itself: run git lfs pull"),
    ("<!doctype html", "a web page, so the download went wrong"),
    ("<html", "a web page, so the download went wrong"),
)


class FileKind(Enum):
    """The kinds of files of a model."""

    EXPORTED_PROGRAM = "an exported program"
    OLD_EXPORTED_PROGRAM = "an exported program in the layout of torch 2.7 and before"
    TORCHSCRIPT = "a TorchScript archive"
    TORCH_SAVE = "a file of torch.save"
    SAFETENSORS = "a file of safetensors"


def file_kind(path: Path) -> FileKind:
    """Returns the kind of a file.

    Args:
        path: A file that exists.

    Raises:
        SourceError: The file holds no model: empty, cut short, or of another kind, which is named.
    """
    try:
        with open_regular(path) as file:
            start = file.read(512)
            if not start:
                raise _not_a_model(path, "empty (0 bytes)")
            if start.startswith(b"PK"):
                return _zip_kind(path)
            if start.startswith(b"\x80"):
                file.seek(0)
                if is_plain_torch(file):
                    return FileKind.TORCH_SAVE
                raise _not_a_model(path, "a pickle that torch.save did not write")
    except PermissionError as error:
        raise SourceError(
            "The file may not be read.", where=str(path), fix="Check its mode."
        ) from error
    except OSError as error:
        raise SourceError(
            "The file cannot be read.", where=f"{path} ({error.strerror})", fix=_ACCEPTED
        ) from error
    if _is_safetensors(path, start):
        return FileKind.SAFETENSORS
    raise _not_a_model(path, _foreign(path, start))


def _zip_kind(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if why := unpacks_too_far(archive, path.stat().st_size):
                raise damaged(path, why)
            if min((info.header_offset for info in archive.infolist()), default=0) > 0:
                raise damaged(path, "what is readable of it is an archive that was inside it")
            if is_torch_zip(archive):
                script = any(
                    name.count("/") >= 1
                    and (name.endswith("/constants.pkl") or name.split("/")[1] == "code")
                    for name in names
                )
                return FileKind.TORCHSCRIPT if script else FileKind.TORCH_SAVE
            if "serialized_exported_program.json" in names:
                return FileKind.OLD_EXPORTED_PROGRAM
            for name in names:
                if name.count("/") == 1 and name.endswith("/archive_format"):
                    return FileKind.EXPORTED_PROGRAM
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise damaged(path, str(error) or type(error).__name__) from error
    what = "an archive of numpy arrays (.npz)" if _only_arrays(names) else "a zip archive of files"
    raise _not_a_model(path, what)


def _only_arrays(names: list[str]) -> bool:
    return bool(names) and all(name.endswith(".npy") for name in names)


def _is_safetensors(path: Path, start: bytes) -> bool:
    """A length (uint64) and then that many bytes of JSON."""
    if len(start) < 10 or start[8:9] != b"{":
        return False
    length = int.from_bytes(start[:8], "little")
    if length > min(path.stat().st_size - 8, _LONGEST_HEADER):
        if path.suffix == ".safetensors":
            raise damaged(path, "its header reaches beyond its end")
        return False
    with path.open("rb") as file:
        file.seek(8)
        try:
            return isinstance(json.loads(file.read(length)), dict)
        except (ValueError, RecursionError):
            return False


def _foreign(path: Path, start: bytes) -> str:
    for magic, name in _FOREIGN:
        if start.startswith(magic):
            return name
    if path.suffix == ".onnx":
        return "an ONNX model, which is where tokexport ends and not where it begins"
    try:  # the last character may be cut
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return _UNKNOWN
    if "\0" in text:
        return _UNKNOWN
    for beginning, name in _TEXT:
        if text.lstrip().lower().startswith(beginning):
            return name
    if path.suffix == ".py":
        return f"Python source: name the function in it as {path.stem}:FUNCTION"
    return "a text file"


def _not_a_model(path: Path, what: str) -> SourceError:
    return SourceError(f"The file is not a model: it is {what}.", where=str(path), fix=_ACCEPTED)
