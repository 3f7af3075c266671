"""Prints how bundles stand to a lock, and what a lock holds."""

from __future__ import annotations

from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.lock.check import UNCHANGED, BundleCheck, CheckResult, worst_of
from tokexport.exporter.lock.findings import BREAK, DRIFT
from tokexport.exporter.lock.lock_file import Measured
from tokexport.exporter.lock.update import WrittenLock
from tokexport.exporter.report.tables import unbroken_lines
from tokexport.exporter.report_page.verdicts import plural
from tokexport.exporter.speed.paired_text import render_paired_speed

STYLES: Final = {UNCHANGED: "bold green", DRIFT: "bold yellow", BREAK: "bold red"}


def render_check(found: CheckResult, console: Console) -> None:
    """Prints a row per bundle, every finding below, the speed, and the outcome."""
    if found.lock is not None:
        _render_bundles(found, console)
    if found.speed is not None:
        render_paired_speed(found.speed, console)


def _render_bundles(found: CheckResult, console: Console) -> None:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("bundle", "target", "precision", "largest error", "of allowed", "outcome"):
        table.add_column(heading)
    for one in found.bundles:
        table.add_row(*cells(one), Text(one.outcome, STYLES[one.outcome]))
    for line in unbroken_lines(table, console):
        console.print(line, soft_wrap=True)
    for one in found.bundles:
        for finding in one.findings:
            line = Text.assemble((finding.kind, STYLES[finding.kind]), f"  {one.name}: ")
            line.append(f"{finding.what} {finding.locked} → {finding.found}. {finding.sentence}")
            console.print(line, soft_wrap=True)
    outcome = worst_of(one.outcome for one in found.bundles)
    said = f"  {plural(len(found.bundles), 'bundle')}, {found.lock}"
    console.print(Text.assemble((outcome, STYLES[outcome]), said), soft_wrap=True)


def cells(one: BundleCheck) -> tuple[str, ...]:
    """Returns the cells of a bundle before its outcome: what it is, and how far it is off."""
    return one.name, one.target, one.precision, *errors_of(one.measured)


def errors_of(ran: Measured | None) -> tuple[str, str]:
    """Returns the largest error of an output, and the most that one uses of its tolerance."""
    if ran is None or not ran.outputs:
        return "–", "–"
    most = max(one.max_abs for one in ran.outputs.values())
    shares = [one.share_of_allowed for one in ran.outputs.values()]
    known = [share for share in shares if share is not None]
    return f"{most:.1e}", f"{max(known):.0%}" if known else "–"


def render_lock(done: WrittenLock, console: Console) -> None:
    """Prints what changed in a lock, and a row for each run of a bundle."""
    for change in done.changes:
        console.print(Text(change), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD)
    for heading in ("bundle", "target", "precision", "environment", "largest error", "of allowed"):
        table.add_column(heading)
    for name, one in done.lock.bundles.items():
        for ran in one.measured or (None,):
            where = "not run" if ran is None else str(ran.environment)
            facts = one.facts
            table.add_row(name, facts.target, facts.precision, where, *errors_of(ran))
    for line in unbroken_lines(table, console):
        console.print(line, soft_wrap=True)
