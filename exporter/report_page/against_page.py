"""Fills the page of ``verify --against``: is the bundle still the model of a source?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tokexport.exporter.report_page.answers import stage_table
from tokexport.exporter.report_page.environment import glossary_section
from tokexport.exporter.report_page.page import (
    BAD,
    GOOD,
    PLAIN,
    WARN,
    Facts,
    Note,
    Page,
    Section,
    Table,
    Text,
    Verdict,
)
from tokexport.exporter.report_page.verdicts import plural

_TONES: Final = {"identical": GOOD, "arithmetic": GOOD, "ties only": WARN, "wrong": BAD}
#: What a verdict means, the bundle and the source named before it.
_MEANS: Final = {
    "identical": "The bundle is the model of {source}: its answers are the same to the last bit.",
    "arithmetic": (
        "The bundle is the model of {source}: its answers differ by rounding alone, within what it "
        "is allowed."
    ),
    "ties only": (
        "The bundle is the model of {source}: where it answers otherwise, two choices were equally "
        "good, and it took the other one."
    ),
    "wrong": "The bundle is not the model of {source}.",
}
_HASHES: Final = {
    "same": "the same as in the bundle",
    "other": "others than in the bundle",
    "unknown": "not known",
}


def against_page(found: Mapping[str, Any], fix: str) -> Page:
    """Returns the page of a bundle that was held to a source.

    Args:
        found: ``to_json`` of an ``AgainstSource``.
        fix: What to do where the bundle is not that model; '' where it is.
    """
    word = str(found["verdict"])
    samples = plural(found["samples"], "sample")
    details = [f"Compared on {samples}: {found['inputs']}."]
    if found["ties"]:
        details.append(f"On {plural(found['ties'], 'sample')} a near-tie was met.")
    if found["other_batches"]:
        batches = " and ".join(map(str, found["other_batches"]))
        details.append(f"Not compared was what takes {batches} samples at once.")
    verdict = Verdict(
        _TONES[word], word.upper(), _MEANS[word].format(source=found["source"]), tuple(details)
    )
    return Page(
        title=f"Is {found['bundle']} still the model of {found['source']}?",
        kind="bundle against source",
        verdict=verdict,
        sections=tuple(_sections(found, fix)),
    )


def _sections(found: Mapping[str, Any], fix: str) -> Iterator[Section]:
    reasons = tuple(_reasons(found))
    if reasons:
        remedy = Note(WARN, "Next", fix) if fix else None
        yield Section("Why not, and what to do", reasons + ((remedy,) if remedy else ()))
    yield Section(
        "How far is each output off?",
        (_outputs(found["outputs"]),),
        "The outputs of the bundle beside those of the source in PyTorch, on the same inputs.",
    )
    if found["decisions"]:
        yield _decisions(found["decisions"])
    for title, pairs in (
        ("What differs in the preprocessing", found["preprocessing"]),
        ("What differs in what it returns beside tensors", found["constants"]),
    ):
        if pairs:
            yield Section(title, (_pairs(pairs),))
    if found["stages"]:
        yield Section(
            "The stages of the source",
            (stage_table(found["stages"]),),
            "The source was brought to the stage before the artifact, as a compile does. Each of "
            "these agrees with PyTorch, so a difference is one of the bundle.",
        )
    runtime = found["runtime"]
    rows = (
        ("bundle", str(found["bundle"])),
        ("source", found["source"]),
        ("weights", _HASHES[found["weights"]]),
        ("graph", _HASHES[found["structure"]]),
        ("runtime", f"{runtime['flavour']} {runtime['version']}"),
        ("precision", found["precision"]),
    )
    yield Section("What was compared", (Facts(rows),))
    yield glossary_section()


def _decisions(decisions: Sequence[Mapping[str, Any]]) -> Section:
    """Returns how each decision of the model falls in the bundle."""
    numbers = ("positions", "agree", "flips", "from a tie", "score error")
    rows = tuple(
        (
            f"{number}. {_place(one)}",
            str(one["positions"]),
            f"{one['agreeing']:.1%}",
            str(one["flips"]),
            "–" if not one["flips"] else f"{float(one['margin']):.1e}",
            f"{float(one['score_error']):.1e}",
            "yes" if one["explained"] else "no",
        )
        for number, one in enumerate(decisions, start=1)
    )
    table = Table(
        ("decision", *numbers, "explained"),
        rows,
        numbers=numbers,
        tones=tuple(PLAIN if one["explained"] else BAD for one in decisions),
    )
    reasons = tuple(
        Text(f"Decision {number}: {one['why_not']}.")
        for number, one in enumerate(decisions, start=1)
        if one["why_not"]
    )
    lead = (
        "The model decides which tokens merge or stay. “Agree” is the share of its choices that "
        "are PyTorch's when the bundle decides all by itself; “flips” are those that differ when "
        "PyTorch decides everything before. A choice that is nearer to a tie than the error of its "
        "scores may fall either way: both are shares of the scale of the scores."
    )
    return Section("Does it decide alike?", (table, *reasons), lead)


def _place(decision: Mapping[str, Any]) -> str:
    """Returns what decides, and the name of the file and the line that it comes from."""
    operator = decision["operator"].rpartition(".")[2].replace("_", " ")
    file = decision["line"].partition(", in ")[0].rpartition("/")[2]
    return f"{operator}, {file}" if file else operator


def _reasons(found: Mapping[str, Any]) -> Iterator[Note | Text]:
    """Yields why the bundle is not that model; nothing where it is."""
    if found["verdict"] != "wrong":
        return
    for name, one in found["outputs"].items():
        if one["failure"]:
            yield Note(BAD, f"Output {name} {one['failure']}")
    if found["weights"] == "other":
        yield Note(
            BAD,
            "The weights are others",
            "The source has other weights than those that the bundle was compiled from, by their "
            "SHA-256.",
        )
    if found["preprocessing"]:
        yield Note(
            BAD,
            "The preprocessing is another",
            "The source makes another input of a picture than the bundle says. Both sides may give "
            "the same answers on the same numbers, and other ones on the same picture.",
        )
    if found["constants"]:
        yield Note(BAD, "What it returns beside tensors is another")


def _outputs(outputs: Mapping[str, Any]) -> Table:
    rows, tones = [], []
    for name, one in outputs.items():
        figures = one["figures"]
        comparison = figures["comparison"]
        sqnr, top1 = figures["sqnr_db"], comparison["top1_agreement"]
        rows.append(
            (
                name,
                f"{float(comparison['max_abs']):.1e}",
                f"{float(comparison['mean_abs']):.1e}",
                f"{float(comparison['cosine']):.6f}",
                "" if sqnr is None else f"{float(sqnr):.1f}",
                "" if top1 is None else f"{top1:.1%}",
                one["verdict"],
            )
        )
        tones.append(_TONES[one["verdict"]])
    headings = (
        *("output", "largest error", "mean error", "cosine", "signal to noise, dB"),
        *("same best class", "verdict"),
    )
    return Table(headings, tuple(rows), headings[1:6], tones=tuple(tones))


def _pairs(pairs: Mapping[str, Any]) -> Table:
    rows = tuple((name, str(ours), str(its)) for name, (ours, its) in pairs.items())
    return Table(("", "in the bundle", "in the source"), rows, tones=(PLAIN,) * len(rows))
