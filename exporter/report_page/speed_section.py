"""Fills the section that says how fast the artifact is, against every baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokexport.exporter.report_page.page import (
    BAD,
    GOOD,
    PLAIN,
    WARN,
    Figure,
    Note,
    Part,
    Section,
    Table,
)
from tokexport.exporter.report_page.plots import latencies
from tokexport.exporter.report_page.verdicts import plural


def speed_section(report: Mapping[str, Any]) -> Section | None:
    """Returns the distributions of the latencies, and the ratios; None where nothing was timed.

    Args:
        report: ``report.json``.
    """
    speed = report["speed"]
    if not speed:
        return None
    samples = {name: timing["samples_ms"] for name, timing in speed["timings"].items()}
    lead = (
        f"All were timed in turn on this machine, in {plural(speed['pairs'], 'round')}, so that a "
        "slow moment meets all of them. “Eager” is your model in PyTorch, with the number of "
        "threads that suits it best here."
    )
    figure = Figure(
        latencies(samples),
        "Each point is one run. The thick bar is the 95 % interval of the median.",
    )
    parts: list[Part] = [figure, _ratios(report)]
    noisy = sorted(
        {name for one in _speeds(report) for name, r in one["ratios"].items() if r["noisy"]}
    )
    notes = [
        Note(
            WARN,
            f"The timing of {name} was disturbed",
            "Its medians and its shortest runs say different things: something else wanted the "
            "processor.",
            remedy="Close other programs, fix --threads, and compile again.",
        )
        for name in noisy
    ]
    return Section("How fast is it?", (*parts, *notes), lead)


def _speeds(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in (report["speed"], report["speed_over_unreduced"]) if one]


def _ratios(report: Mapping[str, Any]) -> Table:
    rows, tones = [], []
    for speed in _speeds(report):
        for name, ratio in speed["ratios"].items():
            timing = speed["timings"][name]
            low, high = float(ratio["low"]), float(ratio["high"])
            rows.append(
                (
                    name,
                    f"{timing['median_ms']:.2f}",
                    f"{timing['min_ms']:.2f}",
                    speed["baseline"],
                    f"{ratio['of_medians']:.2f} ×",
                    f"{low:.2f} to {high:.2f}",
                )
            )
            sure = GOOD if low > 1 else BAD if high < 1 else PLAIN
            tones.append(WARN if ratio["noisy"] else sure if name == _last(speed) else PLAIN)
    headings = (
        *("candidate", "median ms", "shortest ms", "held against", "times as fast"),
        "95 % interval",
    )
    return Table(headings, tuple(rows), (*headings[1:3], *headings[4:]), tones=tuple(tones))


def _last(speed: Mapping[str, Any]) -> str:
    """Returns the artifact, which is the last candidate timed."""
    return str(list(speed["timings"])[-1])
