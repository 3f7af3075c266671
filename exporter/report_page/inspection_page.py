"""Fills the page of an inspection of a picture: which of its patches become one token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokexport.exporter.report_page.blocks_section import cost_section, unrecognised_notes
from tokexport.exporter.report_page.environment import glossary_section
from tokexport.exporter.report_page.page import GOOD, PLAIN, WARN, Facts, Page, Section, Verdict
from tokexport.exporter.report_page.token_sections import map_sections, schedule_section


def inspection_page(found: Mapping[str, Any], picture: str) -> Page:
    """Returns the page of a picture that went through a model.

    Args:
        found: ``to_json`` of an ``Inspection`` whose tokens were drawn.
        picture: What the picture is called.
    """
    drawn = found["drawn"] or {"tokens": None, "why_not": "", "pictures": []}
    data = {
        "blocks": found["blocks"],
        "outside": found["outside"],
        "tokens": drawn["tokens"],
        "tokens_why_not": drawn["why_not"],
        "pictures": drawn["pictures"],
    }
    recipe = f" with {found['recipe']}" if found["recipe"] else ""
    return Page(
        title=f"{picture} in {found['source']}{recipe}",
        kind="inspection of a picture",
        verdict=_verdict(data, picture),
        sections=tuple(_sections(found, data, picture)),
    )


def _verdict(data: Mapping[str, Any], picture: str) -> Verdict:
    tokens = data["tokens"]
    if not tokens or not tokens["steps"]:
        return Verdict(
            WARN, "NOT DRAWN", f"The tokens of {picture} cannot be drawn: {data['tokens_why_not']}."
        )
    first, last = tokens["steps"][0], tokens["steps"][-1]
    holders = last["holders"][0]
    dropped = sum(holder < 0 for holder in holders)
    if first["tokens"] == last["tokens"]:
        return Verdict(
            PLAIN, "NOTHING MERGED", f"Each of the {len(holders)} patches keeps a token of its own."
        )
    gone = f", and {dropped} of {len(holders)} patches are dropped" if dropped else ""
    return Verdict(
        GOOD,
        "DRAWN",
        f"The {first['tokens']} tokens of {picture} become {last['tokens']}{gone}.",
    )


def _sections(found: Mapping[str, Any], data: Mapping[str, Any], picture: str) -> Iterator[Section]:
    yield from map_sections(data)
    schedule = schedule_section(found, data)
    if schedule is not None:
        yield schedule
    notes = tuple(unrecognised_notes(data))
    if notes:
        yield Section("What was recognised?", notes)
    cost = cost_section(data)
    if cost is not None:
        yield cost
    shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in found["inputs"].items())
    rows = (("picture", picture), ("model", found["source"]), ("inputs", shapes))
    yield Section("What was used", (Facts(rows),))
    yield glossary_section()
