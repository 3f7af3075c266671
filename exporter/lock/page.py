"""Fills the page of ``check``: are the bundles still what was locked?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tokexport.exporter.lock.check import UNCHANGED, BundleCheck, CheckResult
from tokexport.exporter.lock.findings import BREAK, DRIFT
from tokexport.exporter.lock.lock_file import OutputFigures
from tokexport.exporter.lock.remedies import remedy
from tokexport.exporter.report_page.environment import glossary_section
from tokexport.exporter.report_page.page import (
    BAD,
    GOOD,
    WARN,
    Facts,
    Note,
    Page,
    Section,
    Table,
    Verdict,
)
from tokexport.exporter.report_page.verdicts import plural
from tokexport.exporter.speed.paired_bundles import PairedSpeed
from tokexport.exporter.speed.paired_decision import Verdict as SpeedVerdict

_TONES: Final = {UNCHANGED: GOOD, DRIFT: WARN, BREAK: BAD}
_SPEED_TONES: Final = {
    SpeedVerdict.SLOWER: BAD,
    SpeedVerdict.NOT_SLOWER: GOOD,
    SpeedVerdict.UNDECIDED: WARN,
}


def check_page(found: CheckResult) -> Page:
    """Returns the page of bundles that were held to a lock.

    Args:
        found: What check found.
    """
    word = found.outcome
    speed = () if found.speed is None else (f"Its speed: {_speed_sentence(found.speed)}",)
    return Page(
        title=f"Are the bundles what {found.lock} says?"
        if found.lock is not None
        else "Is the new bundle slower than the old one?",
        kind="check of a lock" if found.lock is not None else "check of the speed",
        verdict=Verdict(_TONES[word], word.upper(), _sentence(found), speed),
        sections=tuple(_sections(found)),
    )


def _sentence(found: CheckResult) -> str:
    if found.lock is None:
        assert found.speed is not None
        return _speed_sentence(found.speed)
    count = plural(len(found.bundles), "bundle")
    broken = [one.name for one in found.bundles if one.outcome == BREAK]
    drifted = [one.name for one in found.bundles if one.outcome == DRIFT]
    if broken:
        return f"Of {count}, {_named(broken)} no longer what the team locked."
    if found.outcome == BREAK:
        return f"The {count} answer as locked, and one is slower than it was."
    if drifted:
        return f"Of {count}, {_named(drifted)} not quite what was locked, and none is wrong. " + (
            "Under --strict that fails." if found.strict else "That does not fail."
        )
    return f"{count} checked, and each is what the team locked."


def _named(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _sections(found: CheckResult) -> Iterator[Section]:
    for kind, title in ((BREAK, "What broke, and what to do"), (DRIFT, "What drifted")):
        notes = tuple(
            Note(
                BAD if kind == BREAK else WARN,
                f"{one.name}: {finding.what}",
                f"{finding.sentence}\nLocked: {finding.locked}\nFound: {finding.found}",
                code=finding.source_line,
                remedy=remedy(finding),
            )
            for one in found.bundles
            for finding in one.findings
            if finding.kind == kind
        )
        if notes:
            yield Section(title, notes)
    if found.bundles:
        yield _bundles(found.bundles)
        yield _outputs(found.bundles)
    yield from _accuracy(found.bundles)
    if found.speed is not None:
        yield _speed(found.speed)
    yield glossary_section()


def _bundles(bundles: Sequence[BundleCheck]) -> Section:
    rows, tones = [], []
    for one in bundles:
        where = "not run" if one.measured is None else str(one.measured.environment)
        rows.append((one.name, one.target, one.precision, where, one.outcome))
        tones.append(_TONES[one.outcome])
    headings = ("bundle", "target", "precision", "runs on", "outcome")
    table = Table(headings, tuple(rows), tones=tuple(tones))
    lead = "Each was run on its reference data where it can run here, and compared with the lock."
    return Section("Which bundles?", (table,), lead)


def _outputs(bundles: Sequence[BundleCheck]) -> Section:
    rows = tuple(
        (one.name, name, *_cells(figures))
        for one in bundles
        if one.measured is not None
        for name, figures in one.measured.outputs.items()
    )
    numbers = ("largest error", "of allowed", "cosine", "same best class")
    table = Table(("bundle", "output", *numbers, "verdict"), rows, numbers=numbers)
    lead = (
        "The outputs beside those of the model in PyTorch, as they were when the bundle was "
        "compiled. “Of allowed” is what the value that is nearest to its tolerance uses of it: "
        "above 100 % it is wrong."
    )
    return Section("How far is each output off?", (table,), lead)


def _cells(figures: OutputFigures) -> tuple[str, ...]:
    share, top1 = figures.share_of_allowed, figures.top1_agreement
    return (
        f"{figures.max_abs:.1e}",
        "–" if share is None else f"{share:.0%}",
        f"{figures.cosine:.6f}",
        "–" if top1 is None else f"{top1:.1%}",
        figures.verdict,
    )


def _accuracy(bundles: Sequence[BundleCheck]) -> Iterator[Section]:
    rows = tuple(
        (one.name, str(one.measured.labelled.samples), f"{one.measured.labelled.accuracy:.2%}")
        for one in bundles
        if one.measured is not None and one.measured.labelled is not None
    )
    if rows:
        numbers = ("labelled samples", "classified right")
        yield Section("How accurate?", (Table(("bundle", *numbers), rows, numbers=numbers),))


def _speed(speed: PairedSpeed) -> Section:
    known = speed.low is not None and speed.high is not None
    rows = (
        ("new", f"{speed.new.bundle}, median {speed.new.median_ms:.3g} ms"),
        ("old", f"{speed.old.bundle}, median {speed.old.median_ms:.3g} ms"),
        ("new ÷ old", f"{speed.ratio:.3f}"),
        ("95 % interval", f"{speed.low:.3f} to {speed.high:.3f}" if known else "too few rounds"),
        ("rounds", str(speed.pairs)),
    )
    tone = _SPEED_TONES[speed.verdict]
    notes = tuple(Note(WARN, note) for note in speed.notes)
    verdict = Note(tone, str(speed.verdict), _speed_sentence(speed))
    lead = "Both were run here in turns, so that a slow moment meets both."
    return Section("Is it slower?", (verdict, Facts(rows), *notes), lead)


def _speed_sentence(speed: PairedSpeed) -> str:
    allowed = f"{100 * speed.slower:.3g} %"
    return {
        SpeedVerdict.SLOWER: f"The new bundle is slower than the old one by more than {allowed}.",
        SpeedVerdict.NOT_SLOWER: f"The new bundle is not slower than the old one by {allowed}.",
        SpeedVerdict.UNDECIDED: "Whether the new bundle is slower than the old one by more than "
        f"{allowed} could not be decided here; that is no failure.",
    }[speed.verdict]
