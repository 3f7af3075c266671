"""Draws plots as SVG that takes its colours and its text from the page around it.

matplotlib draws each colour as a marked one, and the page's variables take their places: a plot
follows a light and a dark page. Its text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from tokexport.exporter.parity.distribution import HIGHEST, LOWEST, edges
from tokexport.exporter.requirements import require_matplotlib

#: The colours of a plot, and the variables of the page that they stand for.
_INK, _SOFT, _LINE, _FIRST, _SECOND, _BAD = (
    *("#010101", "#020202", "#030303", "#040404", "#050505", "#060606"),
)
_VARIABLES: Final = {
    _INK: "var(--ink)",
    _SOFT: "var(--soft)",
    _LINE: "var(--line)",
    _FIRST: "var(--first)",
    _SECOND: "var(--second)",
    _BAD: "var(--bad)",
}
#: Text stays text, a dollar is no formula, and the same plot is the same file.
_SETTINGS: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tokexport",
    "text.parse_math": False,
}
#: Narrow enough to be read on a telephone, in inches.
_WIDTH: Final = 3.9
#: Beside the axes, in inches: right of them, above, below; left where its labels are numbers, and
#: what a letter of a name takes there. A layout that matplotlib finds draws each plot three times.
_RIGHT, _ABOVE, _BELOW, _LEFT, _LETTER = 0.2, 0.08, 0.46, 0.52, 0.075
_RESAMPLES: Final = 2000
_MOST_DRAWN: Final = 400


def latencies(samples_ms: Mapping[str, Sequence[float]]) -> str:
    """Draws each run of every candidate as a point, and the median with its 95 % interval.

    Args:
        samples_ms: Milliseconds of each run, by the name of the candidate.
    """
    names = [name.replace(", ", "\n") for name in samples_ms]
    longest = max(len(line) for name in names for line in name.splitlines())
    left = min(0.15 + _LETTER * longest, _WIDTH / 2)
    figure, axes = _figure(0.55 + 0.62 * len(samples_ms), left)
    random = np.random.default_rng(0)
    for row, (_, given) in enumerate(samples_ms.items()):
        times = np.array(given)
        shown = times[:: -(-len(times) // _MOST_DRAWN)]
        spread = row + random.uniform(-0.17, 0.17, len(shown))
        axes.plot(shown, spread, ".", color=_FIRST, alpha=0.4, markersize=4, markeredgewidth=0)
        picks = random.integers(0, len(times), (_RESAMPLES, len(times)))
        low, high = np.quantile(np.median(times[picks], axis=1), [0.025, 0.975])
        axes.plot([low, high], [row, row], color=_INK, linewidth=3, solid_capstyle="butt")
        median = float(np.median(times))
        axes.plot([median] * 2, [row - 0.28, row + 0.28], color=_INK, linewidth=1.4)
        label = f"{median:.3g} ms" if median < 1000 else f"{median:.0f} ms"
        axes.annotate(
            label, (median, row - 0.3), ha="center", va="bottom", color=_INK, fontsize=8.5
        )
    axes.set_yticks(range(len(samples_ms)), names)
    axes.set_ylim(len(samples_ms) - 0.5, -0.75)
    _set_latency_axis(axes, samples_ms)
    return _svg(figure)


def error_histogram(counts: Sequence[int], equal: int, allowed: float | None) -> str:
    """Draws how many values are off by how much, on a logarithmic axis.

    Args:
        counts: How many values are in each half decade of ``parity.distribution``.
        equal: How many have no error.
        allowed: Where the gate lies, as a share of the scale; None where it is not one number.
    """
    figure, axes = _figure(2.1, _LEFT)
    ends = np.array(edges())
    total = max(sum(counts) + equal, 1)
    shares = np.array(counts) / total * 100
    used = np.flatnonzero(shares)
    first, last = (int(used[0]), int(used[-1])) if used.size else (len(counts) // 2, 0)
    last = max(first, last)
    axes.bar(ends[:-1], shares, width=np.diff(ends), align="edge", color=_FIRST, edgecolor=_LINE)
    left, right = ends[max(first - 1, 0)], ends[min(last + 2, len(ends) - 1)]
    if allowed is not None and 0 < allowed < np.inf:
        left = min(left, float(np.log10(allowed)) - 1.0)
    if equal:
        left -= 1.6
        axes.bar([left + 0.1], [equal / total * 100], width=0.6, align="edge", color=_SECOND)
        axes.annotate(
            "equal",
            (left + 0.4, 0),
            (0, -11),
            textcoords="offset points",
            ha="center",
            va="center",
            color=_SOFT,
            fontsize=8.5,
        )
    if allowed is not None and 0 < allowed < np.inf:
        place = float(np.log10(allowed))
        right = max(right, place + 0.5)
        axes.axvline(place, color=_BAD, linewidth=1.4, linestyle="--")
        axes.annotate(
            "allowed",
            (place, 1),
            (-3, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right",
            va="top",
            color=_BAD,
            fontsize=8.5,
        )
    axes.set_xlim(left, right)
    numbered = left + 1.4 if equal else left
    step = 2 if right - left > 9 else 1
    ticks = [tick for tick in range(LOWEST - 10, HIGHEST + 1, step) if numbered <= tick <= right]
    axes.set_xticks(ticks, [f"1e{tick:d}" for tick in ticks])
    axes.set_xlabel("error, as a share of the largest output")
    axes.set_ylabel("% of values")
    return _svg(figure)


def _set_latency_axis(axes: Any, samples_ms: Mapping[str, Sequence[float]]) -> None:
    """Scales the axis: by logarithm where the slowest is many times as slow as the fastest."""
    medians = [float(np.median(times)) for times in samples_ms.values()]
    upper = max(float(np.quantile(times, 0.98)) for times in samples_ms.values())
    lower = min(min(times) for times in samples_ms.values())
    if max(medians) > 8 * min(medians):
        axes.set_xscale("log")
        axes.set_xlim(lower * 0.8, upper * 1.3)
        axes.xaxis.set_major_formatter(_plain_number)
        axes.xaxis.set_minor_formatter(lambda *_: "")
        axes.set_xlabel("milliseconds a run (logarithmic)")
        return
    axes.set_xlim(0, upper * 1.08)
    axes.set_xlabel("milliseconds a run")


def _plain_number(value: float, _: int) -> str:
    return f"{value:g}"


def _figure(height: float, left: float) -> tuple[Any, Any]:
    """Returns a figure of the page's width, and its axes.

    Args:
        height: Inches of the figure.
        left: Inches left of the axes, for their labels.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height))
    across, up = _WIDTH - left - _RIGHT, height - _BELOW - _ABOVE
    place = (left / _WIDTH, _BELOW / height, across / _WIDTH, up / height)
    axes = figure.add_axes(place)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_LINE)
    axes.tick_params(colors=_SOFT, labelcolor=_INK, labelsize=8.5, length=3)
    axes.xaxis.label.set(color=_SOFT, fontsize=8.5)
    axes.yaxis.label.set(color=_SOFT, fontsize=8.5)
    axes.grid(axis="x", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any) -> str:
    """Returns a figure as an ``<svg>`` element in the page's colours."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style type.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text.strip()
