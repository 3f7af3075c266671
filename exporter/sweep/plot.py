"""Draws a sweep: speed-up against quality, the Pareto front as a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.requirements import require_matplotlib
from tokexport.exporter.sweep.pareto import Standing
from tokexport.exporter.sweep.sweep import COSINE, Sweep

#: Speed-ups that differ by more than this are drawn on a logarithmic axis.
_WIDE: Final = 6.0
#: So are losses of quality, where the largest is this many times the median one.
_STEEP: Final = 8.0
_FILLS: Final = {Standing.ON: "tab:blue", Standing.OPEN: "white", Standing.OFF: "lightgray"}
_TICKS: Final = (0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0)


def draw_sweep(found: Sweep, path: Path, kind: str) -> None:
    """Draws a sweep into a file.

    Args:
        found: The sweep.
        path: The file.
        kind: ``png`` or ``svg``.

    Raises:
        PackageMissingError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    _draw_points(found, axes)
    front = [(p.ratio.of_medians, p.quality) for p in found.points if p.standing is Standing.ON]
    front += [(1.0, found.unreduced_quality)] if found.unreduced_standing is Standing.ON else []
    if front:
        speeds, quality = zip(*sorted(front), strict=True)
        axes.plot(speeds, quality, "-", color="tab:orange", label="Pareto front", zorder=1)
    for standing, name in ((Standing.OPEN, "open: intervals overlap"), (Standing.OFF, "beaten")):
        if any(point.standing is standing for point in found.points):
            axes.plot([], [], "o", **_marker(standing), label=name)
    _fit_axes(found, axes)
    axes.set_xlabel("times as fast as the unreduced model (95 % interval)")
    axes.set_ylabel(found.quality)
    axes.set_title(f"{found.method}, {found.source}, {found.target} {found.precision}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", frameon=False)
    figure.savefig(path, format=kind, dpi=150)


def _draw_points(found: Sweep, axes: Any) -> None:
    """Draws every value with its interval, its name and its two numbers."""
    for point in found.points:
        speed, ratio = point.ratio.of_medians, point.ratio
        bars = [[max(0.0, speed - ratio.low)], [max(0.0, ratio.high - speed)]]
        axes.errorbar([speed], [point.quality], xerr=bars, color="tab:blue", capsize=3, fmt="none")
        axes.plot([speed], [point.quality], "o", **_marker(point.standing), zorder=3)
        label = f"{found.option}={json.dumps(point.value)}{' (noisy)' * ratio.noisy}"
        said = f"{label}\n{speed:.2f} ×, {_shown(found, point.quality)}"
        # No point lies beyond one of the front, and none before one that is beaten.
        front = point.standing is Standing.ON
        offset, ends = ((5, 5), ("left", "bottom")) if front else ((-5, -5), ("right", "top"))
        _annotate(axes, said, (speed, point.quality), offset, ends)
    best = found.unreduced_quality
    axes.plot([1.0], [best], "s", color="black", zorder=3)
    said = f"unreduced\n{_shown(found, best)}"
    _annotate(axes, said, (1.0, best), (-7, 0), ("right", "center"))


def _annotate(
    axes: Any, text: str, at: tuple[float, float], offset: tuple[int, int], ends: tuple[str, str]
) -> None:
    horizontal, vertical = ends
    axes.annotate(
        text,
        at,
        offset,
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize="x-small",
    )


def _marker(standing: Standing) -> dict[str, Any]:
    edge = "gray" if standing is Standing.OFF else "tab:blue"
    return {"markerfacecolor": _FILLS[standing], "markeredgecolor": edge}


def _shown(found: Sweep, quality: float) -> str:
    return f"{quality:.4f}" if found.quality == COSINE else f"{quality:.1%}".replace("%", " %")


def _fit_axes(found: Sweep, axes: Any) -> None:
    """Fits both axes to the data, logarithmic where one point would squash the others."""
    speeds = [1.0, *(point.ratio.of_medians for point in found.points)]
    if max(speeds) > _WIDE * min(speeds):
        axes.set_xscale("log")
    axes.margins(x=0.15, y=0.2)
    quality = [found.unreduced_quality, *(point.quality for point in found.points)]
    least = 0.5 / max(found.samples, 1)  # half a sample: no loss has a place on the axis too
    if is_steep(quality):
        axes.set_yscale(
            "function",
            functions=(lambda q: loss_place(q, least), lambda place: 1 + least - _losses(place)),
        )
        low, high = min(quality), max(quality)
        axes.set_yticks([tick for tick in _TICKS if low <= tick <= high])
    if found.quality != COSINE:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")


def is_steep(quality: list[float]) -> bool:
    """Returns whether one loss of quality is so large that the others would look alike."""
    losses = sorted(max(quality) - one for one in quality)
    between = [loss for loss in losses if loss > 0]
    return len(between) > 2 and between[-1] > _STEEP * between[len(between) // 2 - 1]


def loss_place(quality: Any, least: float) -> Any:
    """Returns where a quality stands on a logarithmic axis of what is lost to 1."""
    import numpy as np

    return -np.log10(np.maximum(1 + least - np.asarray(quality), least * 1e-3))


def _losses(place: Any) -> Any:
    import numpy as np

    return np.power(10.0, -np.asarray(place))
