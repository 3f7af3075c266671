"""Prints whether a bundle is slower than an old one."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.text import Text

from tokexport.exporter.speed.paired_bundles import PairedSpeed, TimedBundle
from tokexport.exporter.speed.paired_decision import Verdict

_STYLES: Final = {
    Verdict.SLOWER: "bold red",
    Verdict.NOT_SLOWER: "bold green",
    Verdict.UNDECIDED: "bold yellow",
}


def render_paired_speed(found: PairedSpeed, console: Console) -> None:
    """Prints both bundles, the ratio with its interval, the notes and the verdict."""
    blocks = sum(len(one.blocks) for one in found.sets)
    facts = (
        ("old", _said(found.old)),
        ("new", _said(found.new)),
        ("inputs", found.inputs),
        ("new ÷ old", f"{found.ratio:.3f}{_interval(found)}"),
        ("rounds", f"{found.pairs} in {blocks} blocks, {found.seconds:.0f} s, by {found.timed_by}"),
    )
    for label, said in facts:
        console.print(Text(f"{label:<10} {said}"), soft_wrap=True)
    for note in found.notes:
        console.print(Text(note), soft_wrap=True)
    verdict = Text(found.verdict, _STYLES[found.verdict])
    console.print(Text.assemble(verdict, f"  {_meaning(found)}"), soft_wrap=True)


def _said(one: TimedBundle) -> str:
    runtime = f"{one.runtime.flavour} {one.runtime.version}, {one.precision}"
    return f"{one.bundle} ({runtime}), median {one.median_ms:.3g} ms"


def _interval(found: PairedSpeed) -> str:
    if found.low is None or found.high is None:
        return ", too few rounds for an interval"
    return f" (95 % interval {found.low:.3f} to {found.high:.3f})"


def _meaning(found: PairedSpeed) -> str:
    """Returns what the verdict is about."""
    allowed = f"{100 * found.slower:.3g} %"
    return {
        Verdict.SLOWER: f"by more than {allowed}, and a second set of rounds confirms it",
        Verdict.NOT_SLOWER: f"by more than {allowed}",
        Verdict.UNDECIDED: f"whether it is slower by more than {allowed}: this is no failure",
    }[found.verdict]
