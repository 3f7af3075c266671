"""Writes what an attack campaign found as a page of Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from attacks.kinds import ROOT, VERDICTS, kind_named

#: The notes on fixes, written by hand; the lines of their cases were run anew.
NOTES: Final = ROOT / "ci" / "attack_notes.md"

#: The columns behind what was tried, in the order of the table.
COLUMNS: Final = {
    "refused": "refused clearly",
    "right": "ran rightly",
    "wrong": "ran wrongly",
    "raw": "raw",
    "crashed": "crashed",
    "hung": "hung",
    "over budget": "over budget",
}


def page(lines: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Returns the page.

    Args:
        lines: The results.
        names: The kinds that there are.
    """
    text = [
        "# What became of attacks",
        "",
        "Written by `python ci/attack.py table`. Each case can be run again by its kind and "
        "number: `python ci/attack.py replay KIND NUMBER`. Where a fix changed what a case does, "
        "its line was run anew.",
        "",
        f"| kind | on | tried | {' | '.join(COLUMNS.values())} |",
        f"|{' --- |' * 2}{' ---: |' * (len(COLUMNS) + 1)}",
        *(_row(name, target, lines) for name, target in _rows(lines, names)),
        _row("", "", lines),
        "",
        *(f"- {COLUMNS[name]}: {said}" for name, said in VERDICTS.items()),
        "",
        "## The kinds",
    ]
    for name in names:
        text += ["", *_described(name, [one for one in lines if one["kind"] == name])]
    text += ["", "## What was found and fixed", "", NOTES.read_text(encoding="utf-8").rstrip()]
    found = [(line, one) for line in lines for one in line["found"]]
    text += ["", "## All that was not as it should be", ""]
    text += [_line_of(line, one) for line, one in found] or ["Nothing."]
    return "\n".join(text) + "\n"


def _rows(lines: Sequence[dict[str, Any]], names: Sequence[str]) -> list[tuple[str, str]]:
    found = {(one["kind"], one["target"]) for one in lines}
    return sorted(found, key=lambda row: (names.index(row[0]), row[1]))


def _row(name: str, target: str, lines: Sequence[dict[str, Any]]) -> str:
    """Returns the row of a kind and target; without a name that of all."""
    own = [one for one in lines if not name or (one["kind"], one["target"]) == (name, target)]
    verdicts: Counter[str] = Counter()
    for one in own:
        verdicts.update(one["verdicts"])
    cells = " | ".join(str(verdicts[column]) for column in COLUMNS)
    title = f"{name} | {target}" if name else "all | "
    return f"| {title} | {sum(verdicts.values())} | {cells} |"


def _described(name: str, lines: Sequence[dict[str, Any]]) -> list[str]:
    """Returns what a kind is, what it ran on, and what was left out."""
    kind = kind_named(name)
    tried = sum(one["count"] for one in lines)
    on = "; ".join(sorted({one["on"] for one in lines if one["on"]}))
    absent = {target: kind.absent(target) for target in dict.fromkeys(kind.targets)}
    parts = [f"**{name}**: {kind.what}"]
    parts += [f"Ran on: {on}."] * bool(on)
    parts += [f"Not here: {target}, {why}." for target, why in absent.items() if why]
    parts += [f"{tried:,} of {kind.planned:,} cases were run."] * (tried < kind.planned)
    return [" ".join(parts)]


def _line_of(line: dict[str, Any], one: dict[str, Any]) -> str:
    alone = f" (alone: {one['alone']})" if one["alone"] else ""
    said = " ".join(one["said"].split())
    name = f"{line['kind']} {one['index']}, {line['target']}"
    return f"- {name}: {one['what']}: **{one['verdict']}**{alone}: `{said}`"
