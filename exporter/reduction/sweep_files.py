"""Writes a sweep into a folder: table, JSON and plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from rich.console import Console

from tokexport.exporter.errors import WriteError
from tokexport.exporter.output_file import check_place, written_whole
from tokexport.exporter.reduction.sweep import Sweep
from tokexport.exporter.reduction.sweep_plot import draw_sweep, require_matplotlib
from tokexport.exporter.reduction.sweep_tables import render_sweep, sweep_json

_TABLE, _JSON, _PLOTS = "sweep.txt", "sweep.json", {"png": "sweep.png", "svg": "sweep.svg"}
#: Wide enough that no line of the table is broken.
_WIDTH: Final = 200


def check_folder(folder: Path, force: bool, plot: bool) -> None:
    """Refuses, before anything is measured, what could not be written at the end.

    Raises:
        OutputExistsError: A file of an earlier sweep is there, and no ``force``.
        WriteError: The folder is a file, or cannot be made.
        PackageMissingError: A plot is wanted, and matplotlib is not installed.
    """
    if plot:
        require_matplotlib()
    if folder.exists() and not folder.is_dir():
        raise WriteError("The output is a file.", where=str(folder), fix="Pass a folder.")
    if not folder.exists():
        check_place(folder, force)
        return
    for name in (_TABLE, _JSON, *(_PLOTS.values() if plot else ())):
        check_place(folder / name, force)


def write_sweep(found: Sweep, folder: Path, plot: bool) -> list[Path]:
    """Writes the files, each whole or not at all, and returns their paths.

    Raises:
        WriteError: The disk takes no more, or the folder may not be written to.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"The folder cannot be made: {error.strerror}.", where=str(folder)
        ) from error
    written = [folder / _TABLE, folder / _JSON]
    with written_whole(written[0]) as partial, partial.open("w", encoding="utf-8") as file:
        render_sweep(found, Console(file=file, width=_WIDTH, force_terminal=False))
    with written_whole(written[1]) as partial:
        text = json.dumps(sweep_json(found), indent=2, ensure_ascii=False, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")
    for kind, name in _PLOTS.items() if plot else ():
        with written_whole(folder / name) as partial:
            draw_sweep(found, partial, kind)
        written.append(folder / name)
    return written
