"""Prints how a bundle stands to a source."""

from __future__ import annotations

from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.comparison.against import OTHER, SAME, UNKNOWN, AgainstSource
from tokexport.exporter.comparison.tables import cells
from tokexport.exporter.comparison.verdicts import WRONG
from tokexport.exporter.report.tables import unbroken_lines

#: How it is said whether the source has what the bundle was compiled from.
_SAID: Final = {
    SAME: "as in the bundle",
    OTHER: "others than in the bundle",
    UNKNOWN: "not known",
}


def render_against(found: AgainstSource, console: Console) -> None:
    """Prints what a bundle was held to, a row per output, and the verdict."""
    runtime = f"{found.runtime.flavour} {found.runtime.version}, {found.precision}"
    facts = (
        ("bundle", f"{found.bundle} ({runtime})"),
        ("source", found.source),
        ("inputs", found.inputs),
        ("weights", _SAID[found.weights]),
        ("structure", _SAID[found.structure]),
    )
    for label, said in facts:
        console.print(Text(f"{label:<14} {said}"), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD)
    for heading in ("output", "max", "mean", "cosine", "SQNR dB", "top-1", "verdict"):
        table.add_column(heading, justify="left" if heading in ("output", "verdict") else "right")
    for name, one in found.outputs.items():
        most, mean, *_, cosine, sqnr, top1, _ = cells(one.figures)
        style = "bold red" if one.verdict == WRONG else "green"
        table.add_row(name, most, mean, cosine, sqnr, top1, Text(one.verdict, style))
    for line in unbroken_lines(table, console):
        console.print(line, soft_wrap=True)
    if found.decisions:
        _render_decisions(found, console)
    if found.replayed_anew:
        said = f"the bundle's artifact was not replayed: {found.replayed_anew}"
        console.print(Text(said, "yellow"), soft_wrap=True)
    if found.other_batches:
        batches = " and ".join(map(str, found.other_batches))
        said = f"not compared: what takes {batches} samples at once; verify it without a source"
        console.print(Text(said, "yellow"), soft_wrap=True)
    tied = f", {found.ties} with a near-tie" if found.ties else ""
    samples = "1 sample" if found.samples == 1 else f"{found.samples} samples"
    style = "bold red" if found.verdict == WRONG else "bold green"
    console.print(Text.assemble(Text(found.verdict, style), f"  {samples}{tied}"))


def _render_decisions(found: AgainstSource, console: Console) -> None:
    """Prints a row for each decision of the model."""
    table = Table(box=SIMPLE_HEAD)
    headings = ("decision", "positions", "agree", "flips", "margin", "score error", "explained")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "decision" else "right")
    for one in found.decisions:
        place = one.line.partition(", in ")[0].rpartition("/")[2]
        table.add_row(
            f"{one.operator} at {place}" if place else one.operator,
            str(one.positions),
            f"{one.agreeing:.2%}",
            str(one.flips),
            f"{one.margin:.1e}",
            f"{one.score_error:.1e}",
            Text("yes", "green") if one.explained else Text("no", "bold red"),
        )
    for line in unbroken_lines(table, console):
        console.print(line, soft_wrap=True)
    share = found.decision_agreement
    assert share is not None
    console.print(Text(f"decisions      {share:.2%} as in eager"), soft_wrap=True)
