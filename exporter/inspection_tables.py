"""Prints what an inspection found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.inspection import UNREDUCED_MEANS, Generic, Inspection, Part
from tokexport.exporter.target_refusals import Verdict


def render_inspection(found: Inspection, console: Console) -> None:
    """Prints the blocks, the cost of the whole, what stayed generic, and the targets."""

    def show(part: Text | Table) -> None:
        console.print(part, highlight=False, soft_wrap=isinstance(part, Text))

    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in found.inputs.items())
    show(Text.assemble((found.source, "bold"), f"  {shapes}"))
    title = f"\nMultiply-accumulates (MACs) of a run at batch {found.batch}, block by block"
    show(Text(title, "bold"))
    show(_parts_table(found))
    for line in _cost_lines(found):
        show(line)
    generic = list(_generic_lines(found))
    if generic:
        show(Text("\nStayed generic", "bold"))
    for line in generic:
        show(line)
    if found.noise:
        show(Text("\nDraws random numbers (compile refuses it without --drop-noise)", "bold"))
    for draw in found.noise:
        show(Text(f"  {draw}", "yellow"))
    if found.targets:
        show(Text("\nTargets", "bold"))
    for verdict in found.targets:
        for line in _target_lines(verdict):
            show(line)


def _parts_table(found: Inspection) -> Table:
    table = Table(header_style="dim", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    kinds = [kind for kind, count in found.macs.items() if count]
    table.add_column("block", no_wrap=True)
    for heading in ("tokens in", "out", *kinds, "all"):
        table.add_column(heading, justify="right")
    table.add_column("recognised", overflow="fold")
    table.add_column("generic", justify="right")
    for part in (*found.blocks, found.outside):
        table.add_row(*_row(part, kinds))
    return table


def _row(part: Part, kinds: list[str]) -> list[Text]:
    tokens = ("" if count is None else str(count) for count in (part.tokens_in, part.tokens_out))
    return [
        Text(part.path or "outside"),
        *map(Text, tokens),
        *(Text(_short(part.macs[kind])) for kind in kinds),
        Text(_short(sum(part.macs.values()))),
        Text(", ".join(f"{name} × {count}" for name, count in part.recognised.items())),
        Text(str(len(part.generic) or "")),
    ]


def _cost_lines(found: Inspection) -> Iterator[Text]:
    now, before = _cost(found.macs), _cost(found.unreduced)
    yield Text.assemble(("\nthe whole  ", "bold"), _sum(found.macs))
    if found.blocks:
        more = f", {before / now:.2f} times as much" if now else ""
        yield Text.assemble(("unreduced  ", "bold"), _sum(found.unreduced), more)
        yield Text(f"           counted on {UNREDUCED_MEANS}", "dim")


def _sum(macs: Mapping[str, int]) -> str:
    return f"{_short(_cost(macs)) or 0} MACs + {_short(_norms(macs)) or 0} of normalisation"


def _cost(macs: Mapping[str, int]) -> int:
    """Returns what is spent apart from normalisations, which papers mostly leave out."""
    return sum(macs.values()) - _norms(macs)


def _norms(macs: Mapping[str, int]) -> int:
    return macs["normalisation"]


def _generic_lines(found: Inspection) -> Iterator[Text]:
    """Yields what stayed generic, what several blocks have in common once."""
    places: dict[Generic, list[str]] = {}
    for part in (*found.blocks, found.outside):
        for generic in part.generic:
            where = places.setdefault(generic, [])
            if (name := part.path or "outside") not in where:
                where.append(name)
    for generic, where in places.items():
        shown = where[0] if len(where) == 1 else f"{where[0]} … {where[-1]} ({len(where)})"
        line = Text.assemble((f"  {generic.what} ", "yellow"), f"{generic.operator} in {shown}: ")
        line.append(generic.why)
        if generic.line:
            line.append(f"\n    {generic.line}", "dim")
        yield line


def _target_lines(verdict: Verdict) -> Iterator[Text]:
    if verdict.refusals:
        mark = ("refuses", "red")
    else:
        mark = ("no refusal", "green") if verdict.asked else ("not asked", "yellow")
    yield Text.assemble(f"  {verdict.target:<9}", mark, f"  ({verdict.note})")
    for refusal in verdict.refusals:
        yield Text(f"    {refusal.what}")
        for part in (refusal.where, refusal.fix):
            if part:
                yield Text(f"      {part}", "dim")


def _short(count: int) -> str:
    """Returns a count with three decimals of the largest of G, M and k: 1.258 G; '' for 0."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3f} {unit}"
    return str(count or "")
