"""Writes what a reproduction shows, as Markdown."""

from __future__ import annotations

from tokexport.exporter.bisection.result import Bisection


def readme(found: Bisection) -> str:
    """Returns the text of the README, up to the command."""
    fault = found.fault
    assert fault is not None
    compared = f"the bundle {found.bundle}" if found.bundle else f"a compile for {found.target}"
    rows = [
        ("stage", f"`{fault.stage}`. {fault.meaning}"),
        ("outputs", fault.detail),
        ("block", f"`{fault.block}`" if fault.block else "outside of all"),
        ("node", f"`{fault.node}`, operator `{fault.operator}`, which gives `{fault.value}`"),
        ("made by", fault.made_by or "not known"),
        ("line", f"`{fault.line}`" if fault.line else "not known"),
        ("error", f"it {fault.difference}"),
    ]
    table = "\n".join(f"| {name} | {said.replace('|', '/')} |" for name, said in rows)
    return (
        f"# {fault.node}: the first node that is off\n\n"
        f"`{found.source}` was compared with {compared}, in {found.precision}, on {found.inputs}.\n"
        f"{fault.why}\n\n| | |\n|---|---|\n{table}\n"
    )
