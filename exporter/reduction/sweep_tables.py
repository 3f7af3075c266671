"""Prints a sweep, and gives it as plain values."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.reduction.sweep import ACCURACY, Point, Sweep
from tokexport.exporter.report import plain
from tokexport.exporter.wide_table import unbroken_lines

SCHEMA_VERSION = 1


def sweep_json(found: Sweep) -> dict[str, Any]:
    """Returns plain values under the attributes' names, with ``schema_version`` before them."""
    return {"schema_version": SCHEMA_VERSION, **plain(found)}


def render_sweep(found: Sweep, console: Console) -> None:
    """Prints a row per value, and which are on the front."""
    runtime = "" if found.runtime is None else f", {found.runtime.flavour} {found.runtime.version}"
    headline = f"  {found.source} → {found.target}, {found.precision}{runtime}"
    console.print(Text.assemble((found.method, "bold"), headline), soft_wrap=True)
    console.print(Text(f"agreement on {found.inputs}"), soft_wrap=True)
    console.print(
        Text(
            "speed-up over the unreduced model compiled for the same runtime, in interleaved "
            "rounds: ratio of medians (95 % interval)"
        ),
        soft_wrap=True,
    )
    for line in unbroken_lines(_table(found), console):
        console.print(line, soft_wrap=True)
    values = [
        *(["unreduced"] if found.unreduced_on_front else []),
        *(f"{found.option}={_short(point.value)}" for point in found.points if point.on_front),
    ]
    console.print(
        Text.assemble(
            ("\nPareto front  ", "bold"), f"of speed-up and {found.quality}: {', '.join(values)}"
        ),
        soft_wrap=True,
    )
    for warning in found.warnings:
        console.print(Text.assemble(("warning  ", "yellow"), warning), soft_wrap=True)


def _table(found: Sweep) -> Table:
    table = Table(header_style="dim", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    labels = found.quality == ACCURACY
    headings = ["tokens out", "MACs", "top-1", "cosine", "KL", *(["accuracy"] if labels else [])]
    table.add_column(found.option, no_wrap=True)
    for heading in (*headings, "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("front", no_wrap=True)
    accuracy = [f"{found.unreduced_quality:.2%}"] if labels else []
    first = ["unreduced", "", "1.000", "", "", "", *accuracy, "1.00"]
    table.add_row(*map(Text, (*first, _mark(found.unreduced_on_front))))
    for point in found.points:
        table.add_row(*map(Text, _row(point, labels)))
    return table


def _row(point: Point, labels: bool) -> list[str]:
    agreement, ratio = point.agreement, point.ratio
    top1 = None if agreement is None else agreement.top1
    kl = None if agreement is None else agreement.kl
    accuracy = point.reduction.accuracy_reduced
    return [
        _short(point.value),
        str(point.reduction.tokens[-1]),
        f"{point.macs_ratio:.3f}",
        "" if top1 is None else f"{top1:.1%}",
        "" if agreement is None else f"{agreement.cosine:.4f}",
        "" if kl is None else f"{kl:.2e}",
        *([f"{accuracy:.2%}"] if labels and accuracy is not None else []),
        f"{ratio.of_medians:.2f} ({ratio.low:.2f} … {ratio.high:.2f})",
        _mark(point.on_front),
    ]


def _mark(on_front: bool) -> str:
    return "yes" if on_front else ""


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
