"""Writes a folder of files whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from tokexport.exporter.errors import OutputExistsError, WriteError, listed
from tokexport.exporter.system.exchange import exchange
from tokexport.exporter.system.output_file import check_parent, check_replaceable
from tokexport.exporter.system.scratch import HeldFolder, held_signals, sweep


def check_folder_place(
    output: Path, what: str, force: bool, strangers: Callable[[set[str]], Collection[str]]
) -> None:
    """Refuses, before anything is written, an output that may not become the folder.

    An empty folder may. No link is ever replaced, nor a folder with other files in it.

    Args:
        output: The folder.
        what: What it holds, for a message: ``bundle``.
        force: Whether an earlier one that is there may be replaced.
        strangers: Returns those of the folder's files, by their names in it, that belong to no
            earlier one.

    Raises:
        UsageError: As ``check_replaceable`` raises it.
        WriteError: The folder that it goes into does not exist.
        OutputExistsError: There is something at the output that may not be replaced.
    """
    check_replaceable(output)
    output = Path(os.path.abspath(output))
    check_parent(output)
    if not os.path.lexists(output):
        return
    if output.is_symlink() or not output.is_dir():
        kind = "a link" if output.is_symlink() else "a file"
        raise OutputExistsError(
            f"The output is there already, and it is {kind}, not a folder.",
            where=str(output),
            fix="Pass another --output.",
        )
    if not any(output.iterdir()):
        return
    if others := sorted(strangers(_files(output))):
        raise OutputExistsError(
            f"The folder for the {what} is there already, and holds other things.",
            where=f"{output}: {listed(others)}",
            fix="Move them away, or pass another --output.",
        )
    if not force:
        raise OutputExistsError(
            f"The folder for the {what} is there already.",
            where=str(output),
            fix="Pass --force to replace it, or another --output.",
        )


def _files(folder: Path) -> set[str]:
    """Returns the names of all files and links below a folder."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


@contextmanager
def folder_written_whole(output: Path) -> Iterator[Path]:
    """Returns a hidden folder beside the output, which takes its place at the end of the block.

    Raises:
        WriteError: The disk takes no more, or the folder may not be written to.
    """
    output = Path(os.path.abspath(output))
    name = f".{output.name}.partial-"

    def make() -> Path:
        path = output.with_name(name + secrets.token_hex(8))
        path.mkdir()
        return path

    try:
        sweep(output.parent, rf"\.{re.escape(output.name)}\.partial-[0-9a-f]{{16}}")
        held = HeldFolder(make)
        try:
            yield held.path
            with held_signals():
                _put(held.path, output)
        finally:
            held.take_away()
    except OSError as error:
        raise WriteError(
            f"The output cannot be written: {error.strerror or error}.",
            where=str(error.filename or output),
            fix="Choose a folder that you may write to, on a disk with room.",
        ) from error


def _put(partial: Path, output: Path) -> None:
    """Renames a folder to its place; what was there goes."""
    if output.exists() and exchange(partial, output):
        return
    if output.exists():
        shutil.rmtree(output)
    partial.rename(output)
