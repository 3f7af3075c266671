"""Reads what a request holds, and writes its answer: pictures and arrays."""

from __future__ import annotations

import io
from typing import Final

import numpy as np

from tokexport.runtimes import BundleRunner
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.errors import InputMismatchError, PictureError
from tokexport.runtimes.files.array_archive import Archive, ArchiveError, read_npy
from tokexport.runtimes.pictures import Picture, decode

#: The content types of pictures, and how a file of each begins: no other reaches a decoder.
PICTURES: Final = {"image/jpeg": b"\xff\xd8\xff", "image/png": b"\x89PNG\r\n\x1a\n"}
NPY, NPZ = "application/x-npy", "application/x-npz"
ARRAYS: Final = (NPY, NPZ)


def picture_of(body: bytes, kind: str, most_pixels: int) -> Picture:
    """Decodes a picture.

    Args:
        body: The file.
        kind: Its content type.
        most_pixels: The most pixels that it may have.

    Raises:
        PictureError: It is of another kind, damaged or too large.
    """
    if not body.startswith(PICTURES[kind]):
        raise PictureError(f"The body is no {kind}.", fix="Send the file itself: --data-binary.")
    return decode(body, most_pixels=most_pixels)


def arrays_of(body: bytes, kind: str, runner: BundleRunner) -> dict[str, Array]:
    """Reads the inputs of a model; an .npy is the one input of a model that has one.

    Nothing is unpickled, and no array takes more memory than it has bytes in the body.

    Args:
        body: The file.
        kind: Its content type.
        runner: What they are for.

    Raises:
        InputMismatchError: It is damaged, compressed, or holds what is no array of numbers.
    """
    try:
        if kind == NPZ:
            archive = Archive(io.BytesIO(body), packed=False)
            return {name: archive.read(name) for name in archive.names}
        names = [spec.name for spec in runner.inputs]
        if len(names) != 1:
            raise InputMismatchError(
                f"The model has {len(names)} inputs, and an .npy holds one array.",
                fix=f"Send an .npz with {', '.join(names)} as {NPZ}.",
            )
        return {names[0]: read_npy(io.BytesIO(body))}
    except ArchiveError as error:
        what = f"the array {error.member!r:.80}" if error.member else "the body"
        raise InputMismatchError(
            f"Cannot read {what}: {error}.",
            fix="Send what numpy.save or numpy.savez writes, of numbers.",
        ) from error


def as_npz(outputs: dict[str, Array]) -> bytes:
    """Returns outputs as the bytes of an .npz."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **outputs)
    return file.getvalue()
