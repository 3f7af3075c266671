"""Says in GitHub's words how bundles stand to a lock: a summary in Markdown, and annotations.

https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands has both: a
summary has at most 1 MiB, and of a step's annotations ten errors and ten warnings are shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokexport.exporter.errors import WriteError
from tokexport.exporter.lock.check import UNCHANGED, BundleCheck, CheckResult
from tokexport.exporter.lock.findings import BREAK, DRIFT, Finding
from tokexport.exporter.lock.tables import errors_of
from tokexport.exporter.report_page.verdicts import plural
from tokexport.exporter.speed.paired_bundles import PairedSpeed

#: The variable that names the file of a step's summary.
SUMMARY_VARIABLE: Final = "GITHUB_STEP_SUMMARY"
#: Bytes of a summary that GitHub takes, and what is kept free for the last line.
LARGEST_SUMMARY: Final = 1 << 20
_LAST_LINE: Final = 200
MOST_ANNOTATIONS: Final = 10
_MARKS: Final = {UNCHANGED: "✅", DRIFT: "⚠️", BREAK: "❌"}
_LEVELS: Final = {DRIFT: "warning", BREAK: "error"}
#: Characters of a value in a table.
_MOST_SHOWN: Final = 200


@dataclass(frozen=True)
class Annotation:
    """A note at a line of a file.

    Attributes:
        level: ``error`` or ``warning``.
        file: The file.
        line: The line, from 1.
        title: What it is about.
        message: The note.
    """

    level: str
    file: str
    line: int
    title: str
    message: str

    def command(self) -> str:
        """Returns the workflow command that shows it."""
        parts = {"file": self.file, "line": str(self.line), "title": self.title}
        named = ",".join(f"{key}={_property(value)}" for key, value in parts.items())
        return f"::{self.level} {named}::{_data(self.message)}"


def markdown(found: CheckResult) -> str:
    """Returns the summary: the outcome, a table of parity, one of accuracy, and every finding."""
    return _cut(
        [
            *_headline(found),
            *_parity(found.bundles),
            *_accuracy(found.bundles),
            *_speed(found.speed),
            *_findings(found.bundles),
        ]
    )


def write_summary(found: CheckResult, path: Path) -> None:
    """Appends the summary to a file.

    Raises:
        WriteError: The file takes nothing more.
    """
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(markdown(found))
    except OSError as error:
        raise WriteError(
            f"The summary cannot be written: {error.strerror or error}.",
            where=str(path),
            fix=f"Let {SUMMARY_VARIABLE} name a file that you may write to.",
        ) from error


def annotations_of(found: CheckResult) -> tuple[Annotation, ...]:
    """Returns what is noted beside the lines of the lock: breaks first, ten notes at most."""
    if found.lock is None:
        return ()
    lines = _lines_of(found.lock)
    every = [
        Annotation(
            _LEVELS[finding.kind],
            finding.source_line.rpartition(":")[0] or str(found.lock),
            int(finding.source_line.rpartition(":")[2] or lines.get(one.name, 1)),
            f"{one.name}: {finding.what}",
            f"{finding.locked} → {finding.found}. {finding.sentence}",
        )
        for one in found.bundles
        for finding in one.findings
    ]
    return tuple(sorted(every, key=lambda one: one.level)[:MOST_ANNOTATIONS])


def _headline(found: CheckResult) -> Iterator[str]:
    yield f"## {_MARKS[found.outcome]} Parity: {found.outcome}"
    yield ""
    if found.lock is not None:
        yield f"{plural(len(found.bundles), 'bundle')} held to {_cell(str(found.lock))}."
        yield ""


def _parity(bundles: Sequence[BundleCheck]) -> Iterator[str]:
    if not bundles:
        return
    yield "### Parity"
    yield ""
    yield "| | bundle | target | precision | runs on | largest error | of allowed | outcome |"
    yield "| --- | --- | --- | --- | --- | ---: | ---: | --- |"
    for one in bundles:
        where = "–" if one.measured is None else str(one.measured.environment)
        errors = errors_of(one.measured)
        cells = (one.name, one.target, one.precision, where, *errors, one.outcome)
        yield f"| {_MARKS[one.outcome]} | {' | '.join(map(_cell, cells))} |"
    yield ""


def _accuracy(bundles: Sequence[BundleCheck]) -> Iterator[str]:
    """Yields the task's own measure, apart from parity; nothing without labelled samples."""
    measured = [
        (one.name, one.measured.labelled)
        for one in bundles
        if one.measured is not None and one.measured.labelled is not None
    ]
    if not measured:
        return
    yield "### Accuracy"
    yield ""
    yield "| bundle | labelled samples | classified right |"
    yield "| --- | ---: | ---: |"
    for name, labelled in measured:
        yield f"| {_cell(name)} | {labelled.samples} | {labelled.accuracy:.2%} |"
    yield ""


def _speed(speed: PairedSpeed | None) -> Iterator[str]:
    if speed is None:
        return
    yield "### Speed"
    yield ""
    yield "| new | old | new ÷ old | 95 % interval | verdict |"
    yield "| --- | --- | ---: | --- | --- |"
    known = speed.low is not None and speed.high is not None
    interval = f"{speed.low:.3f} to {speed.high:.3f}" if known else "–"
    cells = (speed.new.bundle, speed.old.bundle, f"{speed.ratio:.3f}", interval, speed.verdict)
    yield f"| {' | '.join(map(_cell, cells))} |"
    yield ""
    for note in speed.notes:
        yield f"- {_cell(note)}"
    yield ""


def _findings(bundles: Sequence[BundleCheck]) -> Iterator[str]:
    rows = [(one.name, finding) for one in bundles for finding in one.findings]
    if not rows:
        return
    yield "### What differs from the lock"
    yield ""
    yield "| | bundle | what | locked | found | meaning |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, finding in rows:
        yield f"| {_MARKS[finding.kind]} | {' | '.join(map(_cell, _texts(name, finding)))} |"
    yield ""


def _texts(name: str, finding: Finding) -> tuple[str, ...]:
    return name, finding.what, finding.locked, finding.found, finding.sentence


def _cut(lines: Sequence[str]) -> str:
    """Joins lines, as many as a summary has room for."""
    kept, size = [], 0
    for at, line in enumerate(lines):
        size += len(line.encode()) + 1
        if size > LARGEST_SUMMARY - _LAST_LINE:
            kept.append(f"\n{len(lines) - at} more lines have no room here.")
            break
        kept.append(line)
    return "\n".join(kept) + "\n"


def _cell(text: str) -> str:
    """Returns a text that a cell of a table shows as it is."""
    shown = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
    for sign in "\\|`*_<>[]#~$&@":
        shown = shown.replace(sign, f"\\{sign}")
    return " ".join(shown.split())


def _lines_of(lock: Path) -> dict[str, int]:
    """Returns the line at which each bundle begins in a lock."""
    found: dict[str, int] = {}
    for number, line in enumerate(lock.read_text(encoding="utf-8").splitlines(), start=1):
        key, separator, rest = line.strip().rpartition('": {')
        if separator and not rest and line.startswith('    "'):
            found[json.loads(f'{key}"')] = number
    return found


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
