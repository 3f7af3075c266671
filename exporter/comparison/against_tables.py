"""Prints how a bundle stands to a source."""

from __future__ import annotations

from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.comparison.against import OTHER, SAME, UNKNOWN, WRONG, AgainstSource
from tokexport.exporter.comparison.tables import cells
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
    tied = f", {found.ties} with a near-tie" if found.ties else ""
    samples = "1 sample" if found.samples == 1 else f"{found.samples} samples"
    style = "bold red" if found.verdict == WRONG else "bold green"
    console.print(Text.assemble(Text(found.verdict, style), f"  {samples}{tied}"))
