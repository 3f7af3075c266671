"""Prints a benchmark, and returns it as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.bench.results import Bench, Measurement, Row
from tokexport.exporter.bench_bundle.results import SCHEMA_VERSION
from tokexport.exporter.json_values import plain
from tokexport.exporter.report.tables import unbroken_lines

HEADINGS: Final = (
    "median ms",
    "min ms",
    "plain ÷ this (95 %)",
    "of minima",
    "÷ floor",
    "realised, plain",
    "ours",
    "off by",
)
#: What the columns mean, a line each.
LEGEND: Final = (
    "plain ÷ this: the time of the plain export on the same runtime over this one's, medians of "
    "interleaved rounds with their 95 % bootstrap interval, then minima; the plain export runs in "
    "the same precision, or in fp32 where it cannot. For eager and the floor it is that on ONNX "
    "Runtime.",
    "÷ floor: this time over that of the GEMM floor, the products with weights alone in ONNX "
    "Runtime, fp32.",
    "realised: the speed-up over the unreduced model ÷ the ratio of MACs, over its plain export "
    "and over our compile of it, on the same runtime in the same precision.",
    "off by: the largest difference from fp32 eager, as a share of the output's scale. An export "
    "that is not ours counts as wrong also where a near-tie fell the other way.",
)


def bench_json(found: Bench) -> dict[str, Any]:
    """Returns plain values under the attributes' names, with ``schema_version`` before them."""
    return {"schema_version": SCHEMA_VERSION, **plain(found)}


def render_bench(found: Bench, console: Console) -> None:
    """Prints a table for each batch size, and what its columns mean."""

    def show(line: str | Text) -> None:
        console.print(Text(line) if isinstance(line, str) else line, soft_wrap=True)

    reduction = f", {found.reduction}" if found.reduction else ""
    asked = f" → {', '.join(found.targets)} in {', '.join(found.precisions)}"
    show(Text.assemble((found.source, "bold"), reduction, asked))
    if found.unreduced and not found.reduction:
        show(f"unreduced: {found.unreduced}")
    for measurement in found.measurements:
        show("")
        for line in _facts(measurement):
            show(line)
        for text in unbroken_lines(_table(measurement), console):
            show(text)
    show("")
    for line in LEGEND:
        show(Text(line, "dim"))
    for warning in found.warnings:
        show(Text.assemble(("warning  ", "yellow"), warning))


def _facts(measurement: Measurement) -> Iterator[str | Text]:
    limited = " (time limit)" if measurement.time_limited else ""
    yield Text.assemble(
        (f"Batch {measurement.batch}", "bold"),
        f", {measurement.rounds} interleaved rounds{limited}, held to eager on "
        f"{measurement.inputs}",
    )
    if measurement.macs is not None:
        known = f"MACs {measurement.macs / 1e9:.3g} G"
        if measurement.macs_ratio is not None and measurement.unreduced_macs is not None:
            known += (
                f", unreduced {measurement.unreduced_macs / 1e9:.3g} G: "
                f"{measurement.macs_ratio:.2f} times as many"
            )
        yield known
    if measurement.floor_products:
        yield (
            f"GEMM floor: {measurement.floor_products} products with weights, "
            f"{measurement.floor_macs / 1e9:.3g} G MACs"
        )


def _table(measurement: Measurement) -> Table:
    table = Table(header_style="dim", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in measurement.rows:
        table.add_row(row.name, *map(Text, cells(row)), _remark(row))
    return table


def cells(row: Row) -> list[str]:
    """Returns a row's numbers in the order of ``HEADINGS``, '' for a missing one."""
    timing, plainly, realised = row.timing, row.over_plain, row.realisation
    return [
        "" if timing is None else f"{timing.median_ms:.2f}",
        "" if timing is None else f"{timing.min_ms:.2f}",
        ""
        if plainly is None
        else f"{plainly.of_medians:.2f} ({plainly.low:.2f} … {plainly.high:.2f})",
        "" if plainly is None else f"{plainly.of_minima:.2f}",
        "" if row.over_floor is None else f"{row.over_floor:.2f}",
        _number(None if realised is None else realised.over_plain),
        _number(None if realised is None else realised.over_ours),
        "" if row.error is None else f"{row.error:.1e}",
    ]


def remark(row: Row) -> str:
    """Returns the note beside a row's numbers, or in their place."""
    if row.timing is None:
        return row.note or "not timed"
    if row.wrong:
        return f"wrong by {row.error:.1e}: {row.note}"
    return row.note


def _remark(row: Row) -> Text:
    style = "red" if row.wrong else "yellow" if row.timing is None else "dim"
    return Text(remark(row), style)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
