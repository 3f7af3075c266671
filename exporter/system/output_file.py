"""Writes one file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokexport.exporter.errors import OutputExistsError, WriteError


def check_place(output: Path, force: bool) -> None:
    """Refuses, before anything runs, an output that could not be written at the end.

    Raises:
        WriteError: The folder that it goes into does not exist.
        OutputExistsError: There is a folder at ``output``, or a file and no ``force``.
    """
    if not output.parent.is_dir():
        raise WriteError(
            "The folder that the output goes into does not exist.",
            where=str(output.parent),
            fix=f"Make it first: mkdir -p {output.parent}",
        )
    if output.is_dir():
        raise OutputExistsError(
            "The output is a folder, and a file is to be written.",
            where=str(output),
            fix=f"Pass the file itself: --output {output / 'NAME'}",
        )
    if output.exists() and not force:
        raise OutputExistsError(
            "The output file is there already.",
            where=str(output),
            fix="Pass --force to replace it, or another --output.",
        )


@contextmanager
def written_whole(path: Path, what: str = "output") -> Iterator[Path]:
    """Returns a temporary path to write to, and renames it to its place at the end.

    Args:
        path: The place.
        what: What is written, for a message.

    Raises:
        WriteError: The disk takes no more, or the folder may not be written to.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(
            f"The {what} cannot be written: {error.strerror or error}.",
            where=str(path),
            fix="Pass --output in a folder that you may write to, on a disk with room.",
        ) from error
