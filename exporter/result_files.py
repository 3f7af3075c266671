"""Writes the files of a measurement into a folder: table, JSON and plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from tokexport.exporter.errors import WriteError
from tokexport.exporter.output_file import check_place, written_whole

#: Wide enough that no line of a table is broken.
_WIDTH: Final = 200


def check_folder(folder: Path, names: Iterable[str], force: bool) -> None:
    """Refuses, before anything is measured, what could not be written at the end.

    Args:
        folder: Where the files go; it is made where it is missing.
        names: What the files are called.
        force: Whether files of an earlier measurement may be replaced.

    Raises:
        OutputExistsError: A file is there, and no ``force``.
        WriteError: The folder is a file, or cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise WriteError("The output is a file.", where=str(folder), fix="Pass a folder.")
    if not folder.exists():
        check_place(folder, force)
        return
    for name in names:
        check_place(folder / name, force)


def write_files(folder: Path, writers: Mapping[str, Callable[[Path], None]]) -> list[Path]:
    """Writes the files, each whole or not at all, and returns their paths.

    Args:
        folder: Where they go.
        writers: By the name of each file, what writes it to a path.

    Raises:
        WriteError: The disk takes no more, or the folder may not be written to.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"The folder cannot be made: {error.strerror}.", where=str(folder)
        ) from error
    for name, write in writers.items():
        with written_whole(folder / name) as partial:
            write(partial)
    return [folder / name for name in writers]


def write_text(render: Callable[[Console], None], path: Path) -> None:
    """Writes what a renderer prints, without colours."""
    with path.open("w", encoding="utf-8") as file:
        render(Console(file=file, width=_WIDTH, force_terminal=False))


def write_json_file(data: Mapping[str, Any], path: Path) -> None:
    """Writes plain values, indented."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
