"""Draws the plots of BENCHMARKS.md: no background and a grey ink, for light pages and dark ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench_figures import MODELS, REDUCTIONS, Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK: Final = "#7d8590"
COLOURS: Final = {
    "ort fp32": "#3f80dd",
    "ort int8": "#8dbbf5",
    "openvino fp32": "#c26f26",
    "openvino bf16": "#dd8f4a",
    "openvino int8": "#f0bd84",
}
#: What makes a drawing the same each time, and readable on any page.
STYLE: Final[dict[str, Any]] = {
    "svg.hashsalt": "tokexport",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw_speed(shown: list[Figures], path: Path) -> None:
    """Draws the speed-up over the unreduced model's plain export, a bar for each runtime."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    runtimes = list(dict.fromkeys(one.runtime for one in shown))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        axes = figure.add_subplot()
        width = 0.8 / len(runtimes)
        for place, runtime in enumerate(runtimes):
            own = {one.configuration.model: one for one in shown if one.runtime == runtime}
            heights = [own[model].over_unreduced or 0.0 for model in MODELS]
            at = [group + (place + 0.5) * width - 0.4 for group in range(len(MODELS))]
            bars = axes.bar(at, heights, 0.9 * width, color=COLOURS[runtime], label=runtime)
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
        axes.axhline(1.0, color=INK, linewidth=1)
        axes.margins(y=0.12)
        axes.set_xticks(range(len(MODELS)), list(MODELS.values()))
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("times as fast")
        axes.set_title(
            f"{REDUCTIONS[shown[0].configuration.reduction]} compiled by tokexport, over the plain "
            "export of the unreduced model",
            fontsize=10,
        )
        figure.legend(loc="outside lower center", ncols=len(runtimes))
        _save(figure, path)


def draw_floor(found: list[Figures], path: Path) -> None:
    """Draws time over the GEMM floor at batch 1, from the plain export to tokexport."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = [
        (model, reduction, runtime)
        for runtime in ("ort fp32", "openvino fp32")
        for model in MODELS
        for reduction in REDUCTIONS
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 5.2), layout="constrained")
        axes = figure.add_subplot()
        for place, (model, reduction, runtime) in enumerate(rows):
            (one,) = (
                one
                for one in found
                if (one.configuration.model, one.configuration.reduction) == (model, reduction)
                and one.runtime == runtime
                and one.configuration.batch == 1
            )
            _draw_row(axes, place, one)
        axes.axvline(1.0, color="#3fa34d", linestyle="--", linewidth=1.2)
        names = [f"{MODELS[model]}, {REDUCTIONS[reduction]}" for model, reduction, _ in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.invert_yaxis()
        axes.margins(y=0.03)
        axes.set_xlim(0.75, 3.2)
        axes.grid(axis="x")
        axes.set_xlabel("time ÷ time of the GEMM floor (dashed), batch 1")
        axes.set_title("From the plain export (circle) to tokexport (dot), fp32", fontsize=10)
        for runtime in ("ort fp32", "openvino fp32"):
            axes.plot([], [], "o", color=COLOURS[runtime], label=runtime)
        figure.legend(loc="outside lower center", ncols=2)
        _save(figure, path)


def _draw_row(axes: Axes, place: int, one: Figures) -> None:
    colour = COLOURS[one.runtime]
    before, after = one.plain_over_floor, one.over_floor
    axes.plot([before, after], [place, place], "-", color=colour, linewidth=2, alpha=0.6)
    axes.plot([before], [place], "o", color=colour, fillstyle="none", markersize=6)
    axes.plot([after], [place], "o", color=colour, markersize=7)
    axes.annotate(
        f"{before:.2f}", (before, place), (7, 0), textcoords="offset points", va="center", size=8
    )
    axes.annotate(
        f"{after:.2f}",
        (after, place),
        (-8, 0),
        textcoords="offset points",
        va="center",
        ha="right",
        size=8,
    )


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, transparent=True, metadata={"Date": None})
