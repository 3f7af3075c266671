"""Prints a sweep, and returns it as plain values."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.json_values import plain
from tokexport.exporter.report.tables import unbroken_lines
from tokexport.exporter.sweep.pareto import Standing
from tokexport.exporter.sweep.sweep import ACCURACY, Point, Sweep

SCHEMA_VERSION = 2


def sweep_json(found: Sweep) -> dict[str, Any]:
    """Returns plain values under the attributes' names, with ``schema_version`` before them."""
    return {"schema_version": SCHEMA_VERSION, **plain(found)}


def render_sweep(found: Sweep, console: Console) -> None:
    """Prints a row per value, and which are on the front."""
    runtime = "" if found.runtime is None else f", {found.runtime.flavour} {found.runtime.version}"
    headline = f"  {found.source} → {found.target}, {found.precision}{runtime}"
    console.print(Text.assemble((found.method, "bold"), headline), soft_wrap=True)
    console.print(Text(f"agreement on {found.inputs}"), soft_wrap=True)
    console.print(Text(_judged_on(found)), soft_wrap=True)
    console.print(
        Text(
            "speed-up over the unreduced model compiled for the same runtime, in interleaved "
            "rounds: ratio of medians (95 % interval)"
        ),
        soft_wrap=True,
    )
    for line in unbroken_lines(_table(found), console):
        console.print(line, soft_wrap=True)
    said = f"of speed-up and {found.quality}: {_named(found, Standing.ON) or 'none'}"
    console.print(Text.assemble(("\nPareto front  ", "bold"), said), soft_wrap=True)
    if undecided := _named(found, Standing.OPEN):
        said = f"the intervals of the speed-up overlap: {undecided}"
        console.print(Text.assemble(("not decided   ", "bold"), said), soft_wrap=True)
    for warning in found.warnings:
        console.print(Text.assemble(("warning  ", "yellow"), warning), soft_wrap=True)


def _judged_on(found: Sweep) -> str:
    """Returns how many samples it was judged on, and what was random."""
    random = [
        name
        for name, is_random in (
            ("weights", found.random_weights),
            ("inputs", found.random_inputs),
        )
        if is_random
    ]
    samples = f"judged on {found.samples} sample{'s' * (found.samples != 1)}"
    threads = "" if found.runtime is None else found.runtime.details.get("threads", "")
    on = "" if threads == "" else f", on {threads} thread{'s' * (threads != 1)}"
    chance = "" if not random else f"; random {' and '.join(random)}: the agreement says little"
    return samples + on + chance


def _named(found: Sweep, standing: Standing) -> str:
    """Names the points of a standing."""
    named = [("unreduced", found.unreduced_standing)]
    named += [(f"{found.option}={_short(point.value)}", point.standing) for point in found.points]
    return ", ".join(name for name, its in named if its is standing)


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
    table.add_row(*map(Text, (*first, _mark(found.unreduced_standing))))
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
        f"{ratio.of_medians:.2f} ({ratio.low:.2f} … {ratio.high:.2f}){' noisy' * ratio.noisy}",
        _mark(point.standing),
    ]


def _mark(standing: Standing) -> str:
    return {Standing.ON: "yes", Standing.OPEN: "open", Standing.OFF: ""}[standing]


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
