"""Prints what was measured of bundles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.bench_bundle.results import BenchedBundle, BundleBench, BundleRow
from tokexport.exporter.report.tables import unbroken_lines

HEADINGS: Final = (
    "batch",
    "threads",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "samples/s",
    "import ms",
    "load ms",
    "first run ms",
    "MB loaded",
    "MB at most",
)
_OVER: Final = "first ÷ this (95 %)"
#: What the columns mean, a line each.
LEGEND: Final = (
    "p50, p90, p99: the times that so many percent of the runs stayed within, one run after "
    "another. samples/s: samples of a run ÷ the mean time.",
    "MB: what the bundle adds to a process of Python with numpy and its inputs, its runtime "
    "included; each row is measured in a new process.",
)
_OVER_LEGEND: Final = (
    "first ÷ this: the time of the first bundle over this one's, medians of interleaved rounds "
    "with their 95 % bootstrap interval; above 1 this one is faster."
)


def render_bundle_bench(found: BundleBench, console: Console) -> None:
    """Prints the machine, the bundles, a row for each measurement, and what disturbed them."""

    def show(line: str | Text) -> None:
        console.print(Text(line) if isinstance(line, str) else line, soft_wrap=True)

    for line in _facts(found):
        show(line)
    show("")
    for text in unbroken_lines(_table(found), console):
        show(text)
    show("")
    legend = (*LEGEND, _OVER_LEGEND) if len(found.bundles) == 2 else LEGEND
    for said in legend:
        show(Text(said, "dim"))
    for warning in (*_notes(found), *found.warnings):
        show(Text.assemble(("warning  ", "yellow"), warning))


def _facts(found: BundleBench) -> Iterator[Text]:
    for one in found.bundles:
        yield Text.assemble((one.bundle, "bold"), f"  {_said(one)}")
    machine = found.machine
    cores = machine["cores"]
    where = f"{found.host}: " if found.host else ""
    memory = machine["memory_bytes"]
    size = "" if memory is None else f", {memory / 1e9:.3g} GB"
    yield Text(
        f"{where}{machine['processor']}, {cores['usable']} of {cores['logical']} cores{size}, "
        f"{machine['system']}, Python {machine['python']}"
    )
    yield Text(f"On {found.inputs}")


def _said(one: BenchedBundle) -> str:
    kernels = f", kernels {one.kernels}" if one.kernels else ""
    size = f"{one.bundle_bytes / 1e6:.3g} MB"
    return f"{one.flavour} {one.version}, {one.precision}{kernels}, {size}"


def _table(found: BundleBench) -> Table:
    over = len(found.bundles) == 2
    table = Table(header_style="dim", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in (*HEADINGS, *[_OVER] * over):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.rows:
        table.add_row(*map(Text, [row.bundle, *_cells(row), *[_ratio(row)] * over]))
    return table


def _cells(row: BundleRow) -> list[str]:
    """Returns a row's numbers in the order of ``HEADINGS``, '' for an unknown one."""
    times = row.latency
    return [
        str(row.batch),
        "" if row.threads is None else str(row.threads),
        *(f"{one:.4g}" for one in (times.p50_ms, times.p90_ms, times.p99_ms)),
        f"{row.samples_per_s:.4g}",
        *(f"{one:.3g}" for one in (row.import_ms, row.load_ms, row.first_run_ms)),
        _megabytes(row.memory.loaded_bytes),
        _megabytes(row.memory.peak_bytes),
    ]


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.0f}"


def _ratio(row: BundleRow) -> str:
    if row.ratio is None:
        return ""
    noisy = " noisy" if row.ratio.noisy else ""
    return f"{row.ratio.of_medians:.3f} ({row.ratio.low:.3f} … {row.ratio.high:.3f}){noisy}"


def _notes(found: BundleBench) -> Iterator[str]:
    """Yields what disturbed the runs, once each, with the batches and threads at which it did."""
    seen: dict[str, list[str]] = {}
    for row in found.rows:
        at = f"batch {row.batch}"
        at += "" if row.threads is None else f", threads {row.threads}"
        for note in row.notes:
            places = seen.setdefault(note, [])
            places += [at] * (at not in places)
    for note, places in seen.items():
        known = "; ".join(places)
        yield f"{known}: {note}"
