"""Writes a folder of files whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tokexport.exporter.errors import OutputExistsError, WriteError, listed
from tokexport.exporter.system.exchange import exchange
from tokexport.exporter.system.scratch import HeldFolder, held_signals, sweep


def check_folder_place(output: Path, force: bool, is_own: Callable[[str], bool]) -> None:
    """Refuses, before anything is written, an output that may not become the folder.

    Args:
        output: The folder.
        force: Whether a folder that is there may be replaced.
        is_own: Whether a file of the folder, by its name in it, is one that may be replaced.

    Raises:
        WriteError: The folder that it goes into does not exist.
        OutputExistsError: There is something at the output that may not be replaced.
    """
    if not output.parent.is_dir():
        raise WriteError(
            "The folder that the output goes into does not exist.",
            where=str(output.parent),
            fix=f"Make it first: mkdir -p {output.parent}",
        )
    if not os.path.lexists(output):
        return
    if output.is_symlink() or not output.is_dir():
        raise OutputExistsError(
            "The output is a file or a link, and a folder is to be written.",
            where=str(output),
            fix="Pass another --output.",
        )
    found = {p.relative_to(output).as_posix() for p in output.rglob("*") if not p.is_dir()}
    if found and not force:
        raise OutputExistsError(
            "The output folder is there already.",
            where=str(output),
            fix="Pass --force to replace an earlier package, or another --output.",
        )
    if strangers := sorted(one for one in found if not is_own(one)):
        raise OutputExistsError(
            "The output folder has files in it that are no part of the package.",
            where=f"{output}: {listed(strangers)}",
            fix="Move them away, or pass another --output.",
        )


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
            fix="Pass --output in a folder that you may write to, on a disk with room.",
        ) from error


def _put(partial: Path, output: Path) -> None:
    """Renames a folder to its place; what was there goes."""
    if output.exists() and exchange(partial, output):
        return
    if output.exists():
        shutil.rmtree(output)
    partial.rename(output)
