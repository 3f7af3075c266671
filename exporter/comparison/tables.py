"""Prints how far two sides are apart."""

from __future__ import annotations

import math
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.comparison.compare import IDENTICAL, ComparedOutputs
from tokexport.exporter.comparison.figures import Figures
from tokexport.exporter.report.tables import unbroken_lines

#: The percentiles that have room in a terminal; ``--json`` has all.
_SHARES: Final = ("90", "99")


def render_comparison(found: ComparedOutputs, console: Console) -> None:
    """Prints both sides, a row per output, the notes and the verdict."""
    for label, side in (("reference", found.reference), ("candidate", found.candidate)):
        console.print(Text(f"{label}  {side}"), soft_wrap=True)
    console.print(Text(f"inputs     {found.inputs}"), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD)
    shares = [f"{share} %" for share in _SHARES]
    for heading in ("output", "max", "mean", *shares, "cosine", "SQNR dB", "top-1", "tolerance"):
        table.add_column(heading, justify="left" if heading == "output" else "right")
    for name, one in found.outputs.items():
        table.add_row(name, *cells(one))
    for line in unbroken_lines(table, console):
        console.print(line, soft_wrap=True)
    if found.decision_agreement is not None:
        said = f"decisions  {found.decision_agreement:.2%} as in eager"
        console.print(Text(said), soft_wrap=True)
    for note in found.notes:
        console.print(Text(note), soft_wrap=True)
    same = found.verdict == IDENTICAL
    verdict = Text(found.verdict, "bold green" if same else "bold")
    samples = "1 sample" if found.samples == 1 else f"{found.samples} samples"
    needs = "" if same else f", every value within a tolerance of {found.tolerance:.1e}"
    console.print(Text.assemble(verdict, f"  {samples}{needs}"))


def cells(one: Figures) -> tuple[str, ...]:
    """Returns the cells of one output behind its name, in the order of the headings."""
    far = one.comparison
    top1 = "–" if far.top1_agreement is None else f"{far.top1_agreement:.2%}"
    sqnr = "–" if one.sqnr_db is None else "∞" if math.isinf(one.sqnr_db) else f"{one.sqnr_db:.1f}"
    shares = (f"{one.percentiles[share]:.1e}" for share in _SHARES if one.percentiles)
    return (
        *(f"{far.max_abs:.1e}", f"{far.mean_abs:.1e}", *shares, f"{far.cosine:.6f}"),
        *(sqnr, top1, f"{one.tolerance:.1e}"),
    )
