"""Writes one file whole or not at all."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokexport.exporter.errors import OutputExistsError, UsageError, WriteError
from tokexport.runtimes.bundle.manifest import MANIFEST_NAME


def check_outside(output: Path, *bundles: Path) -> None:
    """Refuses an output in the folder of a bundle, whose files have hashes and may be signed.

    Args:
        output: The file or the folder.
        bundles: The folders; one without a manifest is none, which reading it will say.

    Raises:
        UsageError: It lies in one.
    """
    place = _real(output)
    folders = [one for one in bundles if os.path.lexists(one / MANIFEST_NAME)]
    if any(place.is_relative_to(_real(folder)) for folder in folders):
        raise UsageError(
            "The output would go into the bundle, whose files have hashes in the manifest.",
            where=str(output),
            fix="Pass an output in another folder.",
        )


def check_replaceable(output: Path) -> None:
    """Refuses an output that nothing may take the place of, whatever is asked.

    Raises:
        UsageError: It is ``-``, or the folder of this process or one above it, which would be left
            in a folder that is gone.
        OutputExistsError: It is a device, a pipe or a socket.
    """
    if str(output) == "-":
        raise UsageError(
            "The output '-' is no name, and nothing is written to standard output.",
            fix="Pass the name of a file or a folder.",
        )
    if output.is_dir():
        if _working_folder().is_relative_to(_real(output)):
            raise UsageError(
                "The output is the folder that the command runs in, or one above it.",
                where=str(_real(output)),
                fix="Run it in another folder: a new one takes the place of that.",
            )
    elif output.exists() and not output.is_file():
        raise OutputExistsError(
            "The output is a device, a pipe or a socket, and is not replaced.",
            where=str(output),
            fix="Name another place.",
        )


def _real(path: Path) -> Path:
    """Returns where links lead; ``resolve`` raises where they go in a circle."""
    return Path(os.path.realpath(path))


def _working_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:  # it was removed
        return Path()


def check_parent(output: Path) -> None:
    """Refuses an output in a folder that is not there.

    Raises:
        WriteError: The folder that it goes into does not exist.
    """
    if not output.parent.is_dir():
        raise WriteError(
            "The folder that the output goes into does not exist.",
            where=str(output.parent),
            fix=f"Make it first: mkdir -p {shlex.quote(str(output.parent))}",
        )


def check_place(output: Path, force: bool) -> None:
    """Refuses, before anything runs, an output that could not be written at the end.

    Raises:
        UsageError: As ``check_replaceable`` raises it.
        WriteError: The folder that it goes into does not exist.
        OutputExistsError: There is a folder or a device at ``output``, or a file and no ``force``.
    """
    if not output.is_dir():
        check_replaceable(output)
    check_parent(output)
    if output.is_dir():
        raise OutputExistsError(
            "The output is a folder, and a file is to be written.",
            where=str(output),
            fix=f"Pass the file itself: --output {shlex.quote(str(output / 'NAME'))}",
        )
    if os.path.lexists(output) and not force:
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
        UsageError: As ``check_replaceable`` raises it.
        OutputExistsError: There is a device, a pipe or a socket at the place.
        WriteError: The disk takes no more, or the folder may not be written to.
    """
    if not path.is_dir():
        check_replaceable(path)
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
            fix="Choose a folder that you may write to, on a disk with room.",
        ) from error


def write_json(path: Path, data: Mapping[str, Any], what: str) -> None:
    """Writes one JSON object whole or not at all.

    Args:
        path: The file.
        data: Plain values.
        what: What is written, for a message.

    Raises:
        WriteError: The disk takes no more, or the folder may not be written to.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    with written_whole(path, what) as partial:
        partial.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")
