"""Fills the sections of cost and time by block, and of what was recognised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tokexport.exporter.report_page.page import (
    PLAIN,
    WARN,
    Details,
    Facts,
    Note,
    Part,
    Section,
    Table,
    Text,
    bars,
)

_NORMALISATION: Final = "normalisation"
#: What makes an operator one that is recognised, by what it is.
REMEDIES: Final = {
    "attention": (
        "Write it as torch.nn.functional.scaled_dot_product_attention(q, k, v), or as "
        "((q @ k.transpose(-2, -1)) * scale).softmax(-1) @ v with nothing between softmax and v."
    ),
    "selection": (
        "Take the partners with scores.max(-1), rank them with argsort(descending=True), and keep "
        "a fixed number of the best."
    ),
    "merge": "Join the kept and the merged tokens with torch.cat along the token axis.",
    "gather": (
        "Move whole tokens: x.gather(1, index[..., None].expand(-1, -1, x.shape[-1])), or "
        "x[batch, rows]."
    ),
    "scatter": (
        "Write whole tokens: x.scatter_reduce(1, index[..., None].expand(-1, -1, x.shape[-1]), "
        "values, reduce='mean')."
    ),
    "one-hot": "Move tokens by an index, with gather, in place of a product with a 0/1 matrix.",
    "transform": "Use a shorter transform, or one along one axis at a time.",
    "sort": "Sort the scores themselves, and use the positions that the sort returns.",
    "search": "Choose the best scores with topk, in place of searching for thresholds.",
}


def cost_section(data: Mapping[str, Any]) -> Section | None:
    """Returns multiply-accumulates and milliseconds of every block; None where none is known.

    Args:
        data: ``page.json``.
    """
    blocks = data.get("blocks") or []
    if not blocks:
        return None
    times = data.get("times")
    own_ms = times["block_ms"] if times else [None] * len(blocks)
    macs = [_cost(block["macs"]) for block in blocks]
    rows: list[tuple[str, tuple[float | None, ...], tuple[str, ...]]] = [
        (block["path"], (count,), (f"{_short(count)} MACs",))
        for block, count in zip(blocks, macs, strict=True)
    ]
    if times:
        rows = [
            (name, (*counts, ms), (*texts, "not known" if ms is None else f"{ms:.3f} ms"))
            for (name, counts, texts), ms in zip(rows, own_ms, strict=True)
        ]
    series = ("multiply-accumulates (MACs), counted", "milliseconds, measured") if times else ()
    lead = (
        "Arithmetic of each block beside the time that it takes. A block that takes long for its "
        "arithmetic spends it on moving tokens, or on small operators."
    )
    parts: list[Part] = [bars(rows, series)]
    outside = data.get("outside")
    if outside:
        text = f"Outside the blocks: {_short(_cost(outside['macs']))} MACs"
        parts.append(Text(text + (f", {times['outside_ms']:.3f} ms." if times else ".")))
    if times:
        unnamed = times["unnamed_share"]
        added = (
            f" {unnamed:.0%} of the time is in nodes that the runtime joined or made itself; they "
            "count with the block before them."
            if unnamed >= 0.005
            else ""
        )
        parts.append(
            Text(
                "Times are those of the runtime's own profile, medians of "
                f"{times['runs']} runs; profiling itself makes them a little longer.{added}"
            )
        )
    elif why_not := data.get("times_why_not"):
        parts.append(Note(PLAIN, f"The time of each block is not known: {why_not}."))
    elif "times" in data:
        parts.append(Note(PLAIN, "The time of each block is not known: nothing was timed."))
    return Section("What does each block cost?", tuple(parts), lead)


def recognised_section(report: Mapping[str, Any], data: Mapping[str, Any]) -> Section | None:
    """Returns what the rewriting recognised, and what it did not, with lines and remedies.

    Args:
        report: ``report.json``.
        data: ``page.json``.
    """
    parts: list[Part] = []
    found = report["recognised"]
    if found:
        rows = tuple((_NAMES.get(name, name), f"{count} times") for name, count in found.items())
        parts.append(Facts(rows))
    parts += unrecognised_notes(data)
    left = [
        (one["stage"], one["name"], no["operator"], no["why"], no["line"])
        for one in report["passes"]
        for no in one["non_matches"]
    ]
    if left:
        headings = ("stage", "pass", "operator", "why it was left", "line")
        shown = Table(headings, tuple(left), code=("operator", "line"))
        parts.append(
            Details(f"Every node that a pass was for and left as it was ({len(left)})", (shown,))
        )
    if not parts:
        return None
    lead = (
        "Code that merges or drops tokens is recognised by what it computes, and becomes a fast "
        "operator. What is not recognised still runs, and gives the same answers, but slower."
    )
    return Section("What was recognised?", tuple(parts), lead)


_NAMES: Final = {
    "bipartite_match": "matching of tokens (bipartite_match)",
    "merge_tokens": "merging of tokens (merge_tokens)",
    "gather_tokens": "selection of tokens (gather_tokens)",
    "scatter_tokens": "writing of tokens (scatter_tokens)",
    "sized_attention": "attention (sized_attention)",
}


def unrecognised_notes(data: Mapping[str, Any]) -> Iterator[Part]:
    """Yields a note for each operator that stayed generic, equal ones of many blocks as one.

    Args:
        data: Has ``blocks`` and ``outside`` as ``page.json`` and an inspection have them.
    """
    places: dict[tuple[str, str, str, str], list[str]] = {}
    for part in (*(data.get("blocks") or ()), *filter(None, [data.get("outside")])):
        for one in part["generic"]:
            key = (one["what"], one["operator"], one["why"], one["line"])
            places.setdefault(key, []).append(part["path"])
    for (what, operator, why, line), where in places.items():
        blocks = ", ".join(path for path in dict.fromkeys(where) if path)
        place = f"In {blocks}" if blocks else "Outside the blocks"
        yield Note(
            WARN,
            f"Not recognised: {what} by {operator}",
            f"{place}: {why}.",
            code=line,
            remedy=REMEDIES.get(what, ""),
        )
    if not places and data.get("blocks"):
        yield Note(PLAIN, "Nothing was left unrecognised that tokexport has a faster operator for.")


def _cost(macs: Mapping[str, int]) -> int:
    """Returns the cost without normalisations, which papers mostly leave out."""
    return sum(count for kind, count in macs.items() if kind != _NORMALISATION)


def _short(count: int) -> str:
    """Returns a large number with its unit: 1.23 G."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count} "
