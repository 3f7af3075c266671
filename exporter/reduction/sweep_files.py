"""Writes a sweep into a folder: table, JSON and plot."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tokexport.exporter import result_files
from tokexport.exporter.reduction.sweep import Sweep
from tokexport.exporter.reduction.sweep_plot import draw_sweep
from tokexport.exporter.reduction.sweep_tables import render_sweep, sweep_json
from tokexport.exporter.requirements import require_matplotlib

_TABLE, _JSON, _PLOTS = "sweep.txt", "sweep.json", {"png": "sweep.png", "svg": "sweep.svg"}


def check_folder(folder: Path, force: bool, plot: bool) -> None:
    """Refuses, before anything is measured, what could not be written at the end.

    Raises:
        OutputExistsError: A file of an earlier sweep is there, and no ``force``.
        WriteError: The folder is a file, or cannot be made.
        PackageMissingError: A plot is wanted, and matplotlib is not installed.
    """
    if plot:
        require_matplotlib()
    names = (_TABLE, _JSON, *(_PLOTS.values() if plot else ()))
    result_files.check_folder(folder, names, force)


def write_sweep(found: Sweep, folder: Path, plot: bool) -> list[Path]:
    """Writes the files, each whole or not at all, and returns their paths.

    Raises:
        WriteError: The disk takes no more, or the folder may not be written to.
    """
    writers = {
        _TABLE: partial(result_files.write_text, partial(render_sweep, found)),
        _JSON: partial(result_files.write_json_file, sweep_json(found)),
    }
    for kind, name in _PLOTS.items() if plot else ():
        writers[name] = partial(draw_sweep, found, kind=kind)
    return result_files.write_files(folder, writers)
