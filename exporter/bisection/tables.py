"""Prints where a bundle or a compile first differs."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from tokexport.exporter.bisection.result import Bisection


def render_bisection(found: Bisection, console: Console) -> None:
    """Prints what was compared, and the stage, the block and the node that are off."""
    fault = found.fault
    others = " and ".join(map(str, found.other_batches))
    rows = [
        ("source", found.source),
        ("bundle", str(found.bundle) if found.bundle else ""),
        ("target", f"{found.target}, {found.precision}"),
        ("inputs", found.inputs),
        ("files", "not those that were written" if found.altered else ""),
        ("not looked at", f"what takes {others} samples at once" if others else ""),
        ("agree", ", ".join(found.passed)),
    ]
    if fault is not None:
        rows += [
            ("stage", f"{fault.stage}: {fault.detail}"),
            ("block", fault.block),
            ("node", f"{fault.node} ({fault.operator})" if fault.node else "none singled out"),
            ("error", f"it {fault.difference}" if fault.node else ""),
            ("why", fault.why),
            ("made by", fault.made_by),
            ("line", fault.line),
            ("reproduction", str(found.output) if found.output else ""),
        ]
    for label, said in rows:
        if said:
            console.print(Text(f"{label:<14} {said}"), soft_wrap=True)
    if fault is None:
        samples = "1 sample" if found.samples == 1 else f"{found.samples} samples"
        tied = f"; near-ties fell differently on {found.ties}" if found.ties else ""
        console.print(Text.assemble(Text("no fault", "bold green"), f"  {samples}{tied}"))
