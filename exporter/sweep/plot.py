"""Draws a sweep: speed-up against quality, the front joined by a line."""

from __future__ import annotations

import json
from pathlib import Path

from tokexport.exporter.requirements import require_matplotlib
from tokexport.exporter.sweep.pareto import Standing
from tokexport.exporter.sweep.sweep import Sweep


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

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    speeds = [point.ratio.of_medians for point in found.points]
    quality = [point.quality for point in found.points]
    errors = [
        [max(0.0, p.ratio.of_medians - p.ratio.low) for p in found.points],
        [max(0.0, p.ratio.high - p.ratio.of_medians) for p in found.points],
    ]
    axes.errorbar(speeds, quality, xerr=errors, fmt="o", color="tab:blue", capsize=3)
    axes.plot([1.0], [found.unreduced_quality], "s", color="black")
    axes.annotate("unreduced", (1.0, found.unreduced_quality), (5, 5), textcoords="offset points")
    for point in found.points:
        label = f"{found.option}={json.dumps(point.value)}{' (noisy)' * point.ratio.noisy}"
        place = (point.ratio.of_medians, point.quality)
        axes.annotate(label, place, (5, 5), textcoords="offset points")
    best = [(p.ratio.of_medians, p.quality) for p in found.points if p.standing is Standing.ON]
    best += [(1.0, found.unreduced_quality)] if found.unreduced_standing is Standing.ON else []
    if best:
        axes.plot(*zip(*sorted(best), strict=True), "-", color="tab:orange", label="Pareto front")
    axes.set_xlabel("times as fast as the unreduced model (95 % interval)")
    axes.set_ylabel(found.quality)
    axes.set_title(f"{found.method}, {found.source}, {found.target} {found.precision}")
    axes.grid(alpha=0.3)
    if best:
        axes.legend()
    figure.savefig(path, format=kind, dpi=150)
