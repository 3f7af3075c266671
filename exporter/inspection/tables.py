"""Prints what an inspection found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.build.target_refusals import Verdict
from tokexport.exporter.inspection.inspect import Inspection
from tokexport.exporter.report.block_parts import Generic, Part, cost
from tokexport.graph_passes.pass_report import PassReport

#: Counted apart from all other kinds: papers mostly leave it out.
_NORMS: Final = "normalisation"
_GAP: Final = 2
_HARD_SPACE: Final = "\N{NO-BREAK SPACE}"


def render_inspection(found: Inspection, console: Console) -> None:
    """Prints the blocks, the cost of the whole, what stayed generic, and the targets."""

    def show(line: Text) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in found.inputs.items())
    if found.constant_inputs:
        shapes += f"; fixed: {', '.join(map(str, found.constant_inputs))}"
    recipe = f"  reduced by {found.recipe}" if found.recipe else ""
    show(Text.assemble((found.source, "bold"), f"  {shapes}{recipe}"))
    title = f"\nMultiply-accumulates (MACs) of a run at batch {found.batch}"
    show(Text.assemble((title, "bold"), ", those of normalisation left out"))
    for line in _table_lines(found, console):
        show(line)
    for line in _cost_lines(found):
        show(line)
    generic = list(_generic_lines(found))
    if generic:
        show(Text("\nStayed generic", "bold"))
    for line in generic:
        show(line)
    for line in _pass_lines(found):
        show(line)
    if found.token_cap is not None:
        show(Text("\nRows that the data choose, under --token-cap", "bold"))
        for said in (*found.token_cap.lines(), *found.token_cap.warnings()):
            show(Text(f"  {said}"))
    if found.random_ops:
        show(Text("\nDraws random numbers (compile refuses it without --drop-noise)", "bold"))
    for draw in found.random_ops:
        show(Text(f"  {draw}", "yellow"))
    if found.targets:
        show(Text("\nTargets", "bold"))
    for verdict in found.targets:
        for line in _target_lines(verdict):
            show(line)


def _table_lines(found: Inspection, console: Console) -> Iterator[Text]:
    """Yields the table of the blocks; where the console is too narrow for it, its lines run on."""
    parts = (*found.blocks, found.outside)
    recognised = [_recognised(part) for part in parts]
    table = Table(header_style="dim", box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
    kinds = [kind for kind in found.macs if _is_column(found, kind)]
    headings = ["tokens", *kinds, "MACs"]
    if any(part.generic for part in parts):
        headings.append("generic")
    table.add_column("block", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [_row(part, kinds)[: 1 + len(headings)] for part in parts]
    used = sum(
        max(map(len, column)) + _GAP for column in zip(["block", *headings], *rows, strict=True)
    )
    words = ["recognised", *(word for text in recognised for word in text.split(" "))]
    wanted = max(map(len, ["recognised", *recognised]))
    width = max(*map(len, words), min(wanted, console.width - used))
    table.add_column("recognised", width=width)
    for row, text in zip(rows, recognised, strict=True):
        table.add_row(*map(Text, row), Text(text))
    options = console.options.update(width=used + width)
    for segments in console.render_lines(table, options):
        shown = ((part.text.replace(_HARD_SPACE, " "), part.style or "") for part in segments)
        line = Text.assemble(*shown)
        line.rstrip()
        yield line


def _is_column(found: Inspection, kind: str) -> bool:
    return kind != _NORMS and any(part.macs[kind] for part in found.blocks)


def _recognised(part: Part) -> str:
    """Returns the operators of a part; only behind a comma may a line end."""
    shown = (f"{name} × {count}" for name, count in part.recognised.items())
    return ", ".join(one.replace(" ", _HARD_SPACE) for one in shown)


def _row(part: Part, kinds: list[str]) -> list[str]:
    known = part.tokens_in is not None
    return [
        part.path or "outside",
        f"{part.tokens_in} → {part.tokens_out}" if known else "",
        *(_short(part.macs[kind]) for kind in kinds),
        _short(cost(part.macs)),
        str(len(part.generic) or ""),
    ]


def _cost_lines(found: Inspection) -> Iterator[Text]:
    now, before = cost(found.macs), cost(found.unreduced)
    yield Text.assemble(("\nthe whole  ", "bold"), _sum(found.macs))
    if found.blocks:
        more = f", {before / now:.2f} times as much" if now else ""
        yield Text.assemble(("unreduced  ", "bold"), _sum(found.unreduced), more)
        yield Text(f"           counted on {found.unreduced_means}", "dim")


def _sum(macs: Mapping[str, int]) -> str:
    """Returns the cost, its share of matching, and the cost of normalisations."""
    matching = f" ({_short(macs['matching'])} for matching)" if macs["matching"] else ""
    return f"{_short(cost(macs)) or 0} MACs{matching} + {_short(macs[_NORMS]) or 0} of {_NORMS}"


def _generic_lines(found: Inspection) -> Iterator[Text]:
    """Yields the generic operators, those that several blocks share once."""
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


def _pass_lines(found: Inspection) -> Iterator[Text]:
    """Yields the passes that changed something or left what they are for, and why they did."""
    lowerings = ((verdict.target, verdict.passes) for verdict in found.targets)
    reports = [
        (where, report)
        for where, passes in (("rewrite", found.passes), *lowerings)
        for report in passes
        if report.fired or report.non_matches
    ]
    if not reports:
        return
    yield Text("\nPasses that fired, or left what they are for", "bold")
    width = max(len(report.name) for _, report in reports)
    yield Text(f"{'':<8}  {'pass':<{width}}  fired  left", "dim")
    for where, report in reports:
        left = len(report.non_matches) or ""
        yield Text(f"{where:<8}  {report.name:<{width}}  {report.fired:>5}  {left:>4}".rstrip())
    printed = {one.why for part in (*found.blocks, found.outside) for one in part.generic}
    for where, report in reports:
        for (operator, why), places in _grouped(report).items():
            if why in printed:  # under what stayed generic
                continue
            line = Text.assemble((f"  {report.name} ", "yellow"), f"({where}) left {operator}")
            line.append(f" × {len(places)}: {why}" if len(places) > 1 else f": {why}")
            if place := next(filter(None, places), ""):
                line.append(f"\n    {place}", "dim")
            yield line


def _grouped(report: PassReport) -> dict[tuple[str, str], list[str]]:
    """Returns the lines of what a pass left, by the operator and the reason."""
    places: dict[tuple[str, str], list[str]] = {}
    for one in report.non_matches:
        places.setdefault((one.operator, one.why), []).append(one.line)
    return places


def _target_lines(verdict: Verdict) -> Iterator[Text]:
    if verdict.refusals:
        mark = ("refuses", "red")
    else:
        mark = ("no refusal", "green") if verdict.asked else ("not asked", "yellow")
    yield Text.assemble(f"  {verdict.target:<9}", mark, f"  ({verdict.note})")
    for place in verdict.unfused:
        yield Text("    This attention is not fused: some of it runs in standard operators.")
        yield Text(f"      {place}", "dim")
    for refusal in verdict.refusals:
        yield Text(f"    {refusal.what}")
        for part in (refusal.where, refusal.fix):
            if part:
                yield Text(f"      {part}", "dim")


def _short(count: int) -> str:
    """Returns a count in four digits with G, M or k: 1.258 G, 61.55 M; '' for 0."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            whole = count // size
            return f"{count / size:.{4 - len(str(whole))}f} {unit}"
    return str(count or "")
