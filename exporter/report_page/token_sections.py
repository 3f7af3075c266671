"""Fills the sections that say how many tokens there are, and which patches they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from tokexport.exporter.report_page.drawing.token_maps import picture_defs, token_map
from tokexport.exporter.report_page.page import (
    PLAIN,
    Bars,
    Details,
    Drawn,
    Gallery,
    Note,
    Part,
    Section,
    bars,
)

_DROPPED = -1


def schedule_section(report: Mapping[str, Any], data: Mapping[str, Any]) -> Section | None:
    """Returns the tokens at each attention as bars; None where there is no attention.

    Args:
        report: ``report.json``.
        data: ``page.json``.
    """
    schedule = report["token_schedule"]
    if not schedule:
        return None
    return Section(
        "How many tokens are left?",
        (schedule_bars(schedule, _names(len(schedule), data)),),
        "Tokens of one image that each attention works on. Fewer tokens are less work.",
    )


def schedule_bars(schedule: list[int], names: list[str]) -> Bars:
    """Returns a bar for each attention.

    Args:
        schedule: The tokens of each.
        names: What each is called.
    """
    most = max(schedule)
    return bars(
        [
            (name, (count,), (f"{count:,}" + ("" if count == most else f" ({count / most:.0%})"),))
            for name, count in zip(names, schedule, strict=True)
        ]
    )


def _names(count: int, data: Mapping[str, Any]) -> list[str]:
    blocks = [block["path"] for block in data.get("blocks") or ()]
    return blocks if len(blocks) == count else [f"attention {i}" for i in range(count)]


def map_sections(data: Mapping[str, Any]) -> list[Section]:
    """Returns the pictures with their tokens, or why they cannot be drawn; empty without a word.

    Args:
        data: ``page.json``.
    """
    tokens, why_not = data.get("tokens"), data.get("tokens_why_not", "")
    title = "Which patches became one token?"
    if not tokens or not tokens["steps"] or not data.get("pictures"):
        if not why_not:
            return []
        return [Section(title, (Note(PLAIN, f"This cannot be drawn: {why_not}."),))]
    if not _changes(tokens["steps"]):
        text = "Every patch keeps a token of its own through all blocks: nothing is merged."
        return [Section(title, (Note(PLAIN, text),))]
    parts: list[Part] = [Drawn(picture_defs(data["pictures"], tuple(tokens["grid"])))]
    alone = len(data["pictures"]) == 1
    first, *others = (picture_gallery(tokens, i, alone) for i in range(len(data["pictures"])))
    parts.append(first)
    if others:
        parts.append(Details(f"{len(others)} more of the samples", tuple(others)))
    if why_not:
        parts.append(Note(PLAIN, f"Some blocks are missing: {why_not}."))
    rows, columns = tokens["grid"]
    lead = (
        f"The model cuts a picture into {rows} × {columns} patches. Patches of one colour, without "
        "a line between them, are one token by then; dark ones were dropped. "
        "Patches need not lie side by side to be merged."
    )
    return [Section(title, tuple(parts), lead)]


def _changes(steps: list[Mapping[str, Any]]) -> bool:
    holders = [one for step in steps for one in step["holders"]]
    return any(len(set(one)) < len(one) or _DROPPED in one for one in holders)


def picture_gallery(tokens: Mapping[str, Any], picture: int, alone: bool = False) -> Gallery:
    """Returns one picture at each step.

    Args:
        tokens: The ``tokens`` of ``page.json``.
        picture: Which of the pictures.
        alone: Whether it is the only one, and is large then.
    """
    grid = tuple(tokens["grid"])
    shown = []
    previous: list[int] | None = None
    for step in tokens["steps"]:
        holders = step["holders"][picture]
        if holders == previous:
            continue
        previous = holders
        sizes = Counter(holders)
        dropped = sizes.pop(_DROPPED, 0)
        name = f"into {step['block']}" if step["block"] else "at the end"
        special = f" + {step['special']} without a patch" if step["special"] else ""
        text = f"{len(sizes)} tokens{special}" + (f", {dropped} patches dropped" if dropped else "")
        title = f"{'' if alone else f'sample {picture + 1}, '}{name}: {text}"
        shown.append((token_map(title, picture, (grid[0], grid[1]), holders), name, text))
    return Gallery("" if alone else f"Sample {picture + 1}", tuple(shown), alone)
