"""Fills the page of a compile from ``report.json``, ``page.json`` and the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokexport.exporter.report_page.answers import answers_section
from tokexport.exporter.report_page.blocks_section import cost_section, recognised_section
from tokexport.exporter.report_page.environment import environment_section, glossary_section
from tokexport.exporter.report_page.page import WARN, Cards, Note, Page, Section
from tokexport.exporter.report_page.speed_section import speed_section
from tokexport.exporter.report_page.token_sections import map_sections, schedule_section
from tokexport.exporter.report_page.verdicts import (
    artifact_ratio,
    compile_verdict,
    failure_notes,
    times_allowed,
    title_of,
)

_MB, _KB = 1e6, 1e3


def compile_page(
    report: Mapping[str, Any], data: Mapping[str, Any], manifest: Mapping[str, Any] | None
) -> Page:
    """Returns the page of a compile.

    Args:
        report: ``report.json``.
        data: ``page.json``; an empty mapping for a bundle that has none.
        manifest: ``manifest.json``; None where no bundle was written.
    """
    failure = data.get("failure")
    created = f"Compiled {manifest['created']}." if manifest else ""
    return Page(
        title=title_of(report),
        kind="compile report",
        verdict=compile_verdict(report, failure),
        sections=tuple(_sections(report, data, manifest)),
        written=created,
    )


def _sections(
    report: Mapping[str, Any], data: Mapping[str, Any], manifest: Mapping[str, Any] | None
) -> Iterator[Section]:
    notes = failure_notes(report, data.get("failure"))
    if notes:
        yield Section("What happened, and what to do", tuple(notes))
    if warnings := report["warnings"]:
        yield Section(
            "What to know before you use it" if not notes else "What else was noticed",
            tuple(Note(WARN, text) for text in warnings),
        )
    cards = tuple(_cards(report))
    if cards:
        yield Section("In short", (Cards(cards),))
    for section in (
        answers_section(report, data),
        speed_section(report),
        schedule_section(report, data),
        *map_sections(data),
        cost_section(data),
        recognised_section(report, data),
        environment_section(report, manifest),
        glossary_section(),
    ):
        if section is not None:
            yield section


def _cards(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    ratio = artifact_ratio(report["speed"])
    if ratio is not None:
        yield (
            f"{ratio['of_medians']:.2f} ×",
            f"as fast as {report['speed']['baseline']}",
            f"95 % interval {ratio['low']:.2f} to {ratio['high']:.2f}",
        )
    over = artifact_ratio(report["speed_over_unreduced"])
    if over is not None:
        yield (
            f"{over['of_medians']:.2f} ×",
            "as fast as your model without the reduction",
            f"95 % interval {over['low']:.2f} to {over['high']:.2f}",
        )
    if report["stages"] and report["stages"][-1]["comparisons"]:
        last = report["stages"][-1]
        worst = max(last["comparisons"].values(), key=lambda one: _number(one["relative"]))
        used = [most["share"] for most in last["worst"].values()]
        most = max(map(_number, used), default=0.0)
        share = f"{times_allowed(most)} {'of ' * (most <= 10)}what is allowed" if used else ""
        yield f"{_number(worst['relative']):.1e}", "largest error, of the output's scale", share
    if schedule := report["token_schedule"]:
        yield (
            f"{schedule[0]} → {schedule[-1]}",
            "tokens at the first and the last attention",
            "" if schedule[0] == schedule[-1] else f"{schedule[-1] / schedule[0]:.0%} are left",
        )
    if report["reduction"]:
        for name, one in report["reduction"]["agreement"].items():
            if one is not None and one["top1"] is not None:
                yield (
                    f"{one['top1']:.0%}",
                    "same best class as your model without the reduction",
                    f"what the reduction itself changes in {name}",
                )
    if report["artifact_bytes"]:
        size = report["artifact_bytes"]
        large = f"{size / _MB:.1f} MB" if size >= _MB / 10 else f"{size / _KB:.1f} kB"
        yield large, "artifact with its weights", ""


def _number(value: Any) -> float:
    """Returns a number of a report, in which infinities and NaN are texts."""
    return float(value)
