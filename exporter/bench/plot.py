"""Draws a benchmark: a panel for each batch size, a bar for each candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tokexport.exporter.bench.candidate import Way
from tokexport.exporter.bench.results import Bench, Measurement, Row
from tokexport.exporter.requirements import require_matplotlib

_COLOURS: Final = {Way.OURS: "tab:blue", Way.FLOOR: "tab:green"}
_OTHERS, _WRONG = "tab:gray", "tab:red"


def draw_bench(found: Bench, path: Path, kind: str) -> None:
    """Draws a benchmark into a file.

    Args:
        found: The benchmark.
        path: The file.
        kind: ``png`` or ``svg``.

    Raises:
        PackageMissingError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    rows = max(len(each.rows) for each in found.measurements)
    panels = len(found.measurements)
    figure = Figure(figsize=(9.0, panels * (1.2 + 0.3 * rows)), layout="constrained")
    for position, measurement in enumerate(found.measurements):
        _draw(measurement, figure.add_subplot(panels, 1, position + 1))
    reduction = f", {found.reduction}" if found.reduction else ""
    figure.suptitle(f"{found.source}{reduction}")
    figure.savefig(path, format=kind, dpi=150)


def _draw(measurement: Measurement, axes: Any) -> None:
    """Draws medians as bars and minima as ticks, and the floor as a line through all."""
    axes.set_title(f"batch {measurement.batch}, {measurement.rounds} rounds", fontsize="medium")
    for position, row in enumerate(measurement.rows):
        if row.timing is None:
            axes.text(0.0, position, " not timed", va="center", color=_WRONG)
            continue
        axes.barh(position, row.timing.median_ms, color=_colour(row), alpha=_strength(row))
        axes.plot([row.timing.min_ms], [position], "|", color="black", markersize=9)
        if row.wrong:
            axes.text(row.timing.median_ms, position, f" wrong by {row.error:.1e}", va="center")
        if row.candidate.way is Way.FLOOR:
            axes.axvline(row.timing.median_ms, color=_COLOURS[Way.FLOOR], linestyle="--")
    names = [f"{row.name}{' (noisy)' * _is_noisy(row)}" for row in measurement.rows]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("ms, median (bar) and minimum (tick); dashed: GEMM floor")
    axes.grid(alpha=0.3, axis="x")


def _is_noisy(row: Row) -> bool:
    """Returns whether the minima contradict the medians of a ratio of the row."""
    return any(one is not None and one.noisy for one in (row.over_plain, row.realisation))


def _colour(row: Row) -> str:
    return _WRONG if row.wrong else _COLOURS.get(row.candidate.way, _OTHERS)


def _strength(row: Row) -> float:
    return 0.5 if row.candidate.unreduced else 1.0
