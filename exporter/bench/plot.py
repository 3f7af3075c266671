"""Draws a benchmark: a panel for each batch size, a bar with its value for each candidate."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any, Final

from tokexport.exporter.bench.candidate import Way
from tokexport.exporter.bench.results import Bench, Measurement, Row
from tokexport.exporter.requirements import require_matplotlib

_COLOURS: Final = {Way.OURS: "tab:blue", Way.FLOOR: "tab:green"}
_OTHERS, _WRONG = "tab:gray", "tab:red"
#: A bar this many times as long as the median one is cut, so that the others can be compared.
_CUT: Final = 4.0


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

    heights = [1.3 + 0.32 * len(each.rows) for each in found.measurements]
    figure = Figure(figsize=(9.0, 0.5 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    for measurement, axes in zip(found.measurements, panels[:, 0], strict=True):
        _draw(measurement, axes)
    reduction = f", {found.reduction}" if found.reduction else ""
    figure.suptitle(f"{found.source}{reduction}")
    figure.savefig(path, format=kind, dpi=150)


def _draw(measurement: Measurement, axes: Any) -> None:
    """Draws medians as bars and minima as ticks, and the floor as a line through all."""
    axes.set_title(f"batch {measurement.batch}, {measurement.rounds} rounds", fontsize="medium")
    times = [row.timing.median_ms for row in measurement.rows if row.timing is not None]
    end = axis_end(times)
    for position, row in enumerate(measurement.rows):
        if row.timing is None:
            axes.text(0.0, position, " not timed", va="center", color=_WRONG)
            continue
        cut = row.timing.median_ms > end
        length = end if cut else row.timing.median_ms
        axes.barh(position, length, color=_colour(row), alpha=_strength(row))
        if cut:  # two strokes through the bar say that it goes on
            for place in (0.90, 0.915):
                axes.plot([place * end] * 2, [position - 0.45, position + 0.45], color="white")
        if row.timing.min_ms < end:
            axes.plot([row.timing.min_ms], [position], "|", color="black", markersize=9)
        axes.text(length, position, _value(row), va="center", fontsize="small")
        if row.candidate.way is Way.FLOOR and not cut:
            axes.axvline(length, color=_COLOURS[Way.FLOOR], linestyle="--", linewidth=1)
    names = [f"{row.name}{' (noisy)' * _is_noisy(row)}" for row in measurement.rows]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.22 * end)  # room for the values behind the bars
    axes.set_xlabel("ms, median (bar) and minimum (tick); dashed: GEMM floor")
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def axis_end(times: list[float]) -> float:
    """Returns where an axis ends: behind the longest time that the others leave readable.

    Args:
        times: The medians, in milliseconds.
    """
    if not times:
        return 1.0
    most = _CUT * median(times)
    shown = max((time for time in times if time <= most), default=most)
    return max(times) if max(times) <= most else 1.15 * shown


def _value(row: Row) -> str:
    """Returns what stands behind a bar: its median, its ratio, and whether it is wrong."""
    assert row.timing is not None
    text = f" {row.timing.median_ms:#.3g}".rstrip(".") + " ms"
    if row.over_plain is not None:
        text += f", {row.over_plain.of_medians:.2f} ×"
    return f"{text}, wrong by {row.error:.1e}" if row.wrong else text


def _is_noisy(row: Row) -> bool:
    """Returns whether the minima contradict the medians of a ratio of the row."""
    return any(one is not None and one.noisy for one in (row.over_plain, row.realisation))


def _colour(row: Row) -> str:
    return _WRONG if row.wrong else _COLOURS.get(row.candidate.way, _OTHERS)


def _strength(row: Row) -> float:
    return 0.5 if row.candidate.unreduced else 1.0
