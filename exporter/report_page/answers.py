"""Fills the section that says whether every stage computes what PyTorch computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tokexport.exporter.report_page.page import (
    BAD,
    GOOD,
    PLAIN,
    WARN,
    Details,
    Figure,
    Note,
    Part,
    Section,
    Table,
    Text,
)
from tokexport.exporter.report_page.plots import error_histogram
from tokexport.exporter.report_page.verdicts import STAGES, plural, times_allowed

#: More outputs than this have no plot of their own.
_MOST_PLOTS: Final = 3


def answers_section(report: Mapping[str, Any], data: Mapping[str, Any]) -> Section | None:
    """Returns the errors of every stage, their distribution, and the decisions; None without any.

    Args:
        report: ``report.json``.
        data: ``page.json``.
    """
    if not report["stages"]:
        return None
    lead = (
        "tokexport turns the model into the artifact in stages. Each stage was run on the same "
        "inputs, and its outputs compared with those of PyTorch: the first stage that is off is "
        "where a fault came in."
    )
    parts: list[Part] = [stage_table(report["stages"])]
    parts += _decisions(report)
    parts += error_plots(report["stages"], data.get("errors", {}))
    if report["reduction"]:
        parts += _reduction(report["reduction"])
    if report["accuracy"]:
        before, after = (report["accuracy"][one] for one in ("before", "after"))
        labelled = plural(report["accuracy"]["samples"], "labelled sample")
        parts.append(
            Text(f"Accuracy on {labelled}: {before:.2%} in PyTorch, {after:.2%} compiled.")
        )
    return Section("Does it compute the same?", tuple(parts), lead)


def stage_table(stages: list[Mapping[str, Any]]) -> Table:
    """Returns how each output of each stage compares with PyTorch.

    Args:
        stages: The ``stages`` of a report.
    """
    rows, tones = [], []
    for stage in stages:
        verdict = "passed" if stage["passed"] else "FAILED"
        if stage["ties"]:
            verdict += ", but for ties"
        name = f"{stage['name']}: {STAGES.get(stage['name'], '')}".rstrip(": ")
        tone = BAD if not stage["passed"] else WARN if stage["ties"] else GOOD
        if not stage["comparisons"]:
            rows.append((name, "", "", "", "", "", verdict))
            tones.append(tone)
        for output, found in stage["comparisons"].items():
            most = stage["worst"].get(output)
            inside = not stage["passed"] and most is not None and float(most["share"]) <= 1
            top1 = found["top1_agreement"]
            rows.append(
                (
                    name,
                    output,
                    f"{float(found['max_abs']):.1e}",
                    f"{float(found['relative']):.1e}",
                    "" if most is None else times_allowed(float(most["share"])),
                    "" if top1 is None else f"{top1:.1%}",
                    "passed" if inside else verdict,
                )
            )
            tones.append(GOOD if inside else tone)
    headings = (
        *("stage", "output", "largest error", "of the scale", "of what is allowed"),
        *("same best class", "verdict"),
    )
    return Table(headings, tuple(rows), headings[2:6], tones=tuple(tones))


def error_plots(stages: list[Mapping[str, Any]], errors: Mapping[str, Any]) -> Iterator[Part]:
    """Yields the distribution of the errors of the last stage, and folded away the others.

    Args:
        stages: The ``stages`` of a report.
        errors: The ``errors`` of ``page.json``.
    """
    found = [stage for stage in stages if errors.get(stage["name"])]
    if not found:
        return
    last = found[-1]
    for output, one in list(errors[last["name"]].items())[:_MOST_PLOTS]:
        yield _plot(last, output, one)
    earlier = [
        _plot(stage, output, one)
        for stage in found[:-1]
        for output, one in list(errors[stage["name"]].items())[:1]
        if sum(one["counts"])
    ]
    if earlier:
        yield Details("The same for the stages before it", tuple(earlier))


def _plot(stage: Mapping[str, Any], output: str, one: Mapping[str, Any]) -> Figure:
    gate = stage["gates"].get(output) or {}
    allowed = gate.get("tolerance")
    equal = f", {one['equal']:,} of them none at all" if one["equal"] else ""
    caption = (
        f"{output} at {stage['name']}: how far its {one['values']:,} values are off{equal}. Median "
        f"{float(one['median']):.1e}, largest {float(one['largest']):.1e} of the largest output."
    )
    if allowed is not None:
        caption += (
            f" Dashed: {float(allowed):.0e}, the least that every value is allowed of the scale "
            "around it; where rounding alone moves values farther, they are allowed more."
        )
    if stage["ties"]:
        caption += (
            " Samples on which a near-tie was decided otherwise are counted in; with PyTorch's "
            "choices they agree."
        )
    limit = None if allowed is None else float(allowed)
    return Figure(error_histogram(one["counts"], one["equal"], limit), caption)


def _decisions(report: Mapping[str, Any]) -> Iterator[Part]:
    """Yields which decisions of a stage fell differently, and why that is no error."""
    decided = any(name in report["recognised"] for name in ("bipartite_match", "merge_tokens"))
    tied = [stage for stage in report["stages"] if stage["ties"]]
    said: dict[str, list[str]] = {}
    for stage in tied:
        said.setdefault(_said_tied(stage["ties"], report["batches"]), []).append(stage["name"])
    for text, names in said.items():
        yield Note(WARN, f"{', '.join(names)}: near-ties, which are no error", text)
    if decided and not tied and all(stage["passed"] for stage in report["stages"]):
        yield Note(
            PLAIN,
            "Decisions: nothing was chosen otherwise so that an answer changed",
            "Which tokens are merged or kept depends on scores. Every stage gave PyTorch's answers "
            "with its own choices, so none of them had to be looked at one by one.",
        )


def _said_tied(ties: Mapping[str, Any], batches: int) -> str:
    """Returns why choices that fell differently are no error."""
    some = f"{len(ties['batches'])} of {batches} batches"
    if ties["flips"]:
        text = (
            f"{plural(ties['flips'], 'choice')} in {some} fell differently. By PyTorch's own "
            f"scores both are as good: they are {float(ties['margin']):.1e} of the scale apart, "
            f"and rounding moves the scores by {float(ties['score_error']):.1e}. The stage was run "
            "again with PyTorch's choices, and then it agrees."
        )
    else:
        text = (
            f"In {some} choices are so near to one another that rounding could turn them. With "
            "PyTorch's choices the stage agrees."
        )
    return f"{text}\nDecided at: {'; '.join(ties['decisions'])}"


def _reduction(reduction: Mapping[str, Any]) -> Iterator[Part]:
    """Yields what the reduction itself changes, which no stage is to blame for."""
    rows = []
    for output, one in reduction["agreement"].items():
        if one is None:
            continue
        top1 = "" if one.get("top1") is None else f"{one['top1']:.1%}"
        cosine = "" if one.get("cosine") is None else f"{float(one['cosine']):.4f}"
        rows.append((output, top1, cosine))
    if not rows:
        return
    yield Text(
        f"What the reduction {reduction['recipe']} itself changes is no error of the compile. Held "
        "against your model without it, on the same inputs:"
    )
    headings = ("output", "same best class", "cosine")
    yield Table(headings, tuple(rows), headings[1:])
