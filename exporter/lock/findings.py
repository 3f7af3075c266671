"""Compares what a bundle is and how it did with its lock, fact by fact.

A finding is a ``break``, where the bundle answers otherwise than what was locked, or is held to
less; or a ``drift``, where it is inside its tolerance and outside the lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tokexport.exporter.comparison.verdicts import TIES_ONLY, WRONG
from tokexport.exporter.json_values import plain
from tokexport.exporter.lock.lock_file import (
    BundleFacts,
    LabelledInputs,
    LockedBundle,
    Measured,
    OutputFigures,
)
from tokexport.exporter.lock.measure import Measurement
from tokexport.exporter.lock.projections import moved

BREAK: Final = "break"
DRIFT: Final = "drift"

#: The facts that make it another bundle where they differ, and what they are called.
_SAME_BUNDLE: Final = {
    "target": "target",
    "precision": "precision",
    "options": "options of the compile",
    "reduction": "token reduction",
    "token_schedule": "token schedule",
    "inputs": "inputs",
    "outputs": "outputs",
    "returned": "returned numbers",
    "fixed_inputs": "fixed inputs",
    "preprocessing": "preprocessing",
}
#: The numbers of a gate that allow more where they are larger, each with what it is a share of.
_WIDER_IF_LARGER: Final = {
    "local_tolerance": None,
    "relative_tolerance": "scale",
    "top1_tolerance": None,
    "spread_tolerance": "spread",
}
_WIDER_IF_SMALLER: Final = ("least_cosine",)
#: By how much a tolerance may differ: what it is a share of is measured, and moves with rounding on
#: the same inputs, and with the inputs.
_SLACK: Final = 1.01
_SLACK_OF_INPUTS: Final = 2.0
#: How much more a value may be off on average before it is another tolerance: what rounding does
#: is measured on the machine that compiles.
_ALLOWANCE_FACTOR: Final = 2.0
#: The error of an output drifts where it is so many times the locked one, and uses so much of its
#: tolerance. Threads and instruction sets change the order of sums, and so the largest error.
_ERROR_FACTOR: Final = 3.0
_ERROR_SHARE: Final = 0.1
#: How far two runs of one artifact that near-ties bring out may be apart, as a factor.
_NEAR_FACTOR: Final = 1.5
#: The error of an output over all samples that is rounding, as a share of its scale.
_ROUNDING: Final = 1e-5
#: Of two cosines, how many times the distance from 1 may grow, and what is rounding of it.
_COSINE_FACTOR: Final = 2.0
_COSINE_ROUNDING: Final = 1e-6
#: The share of labelled samples that may be lost before it is a break.
LOST_ACCURACY: Final = 0.005


@dataclass(frozen=True)
class Finding:
    """One thing in which a bundle differs from its lock.

    Attributes:
        kind: ``break`` or ``drift``.
        what: What differs: ``precision``, ``output 'logits'``.
        locked: What the lock says, a text.
        found: What was found, a text.
        sentence: What it means.
        source_line: The line of the model's code that it comes from, ``file:line``; '' if unknown.
    """

    kind: str
    what: str
    locked: str
    found: str
    sentence: str
    source_line: str = ""

    def __str__(self) -> str:
        """Returns it in a line."""
        return f"{self.kind}: {self.what} {self.locked} → {self.found}. {self.sentence}"


def findings(locked: LockedBundle, found: Measurement) -> tuple[Finding, ...]:
    """Returns in what a bundle differs from its lock, breaks first.

    Args:
        locked: What the lock has of it.
        found: What was found here.
    """
    every = (*_of_facts(locked.facts, found.facts), *_of_run(locked, found))
    return tuple(sorted(every, key=lambda one: one.kind != BREAK))


def _of_facts(locked: BundleFacts, found: BundleFacts) -> Iterator[Finding]:
    for field, name in _SAME_BUNDLE.items():
        one, other = getattr(locked, field), getattr(found, field)
        if plain(one) != plain(other):
            yield Finding(
                BREAK, name, text_of(one), text_of(other), f"The {name} changed: another bundle."
            )
    same_inputs = locked.reference.inputs_sha256 == found.reference.inputs_sha256
    slack = _SLACK if same_inputs else _SLACK_OF_INPUTS
    yield from _of_tolerances(locked.tolerances, found.tolerances, slack)
    yield from _of_model(locked, found)
    if locked.artifact != found.artifact:
        yield Finding(
            DRIFT,
            "artifact",
            f"{locked.artifact.sha256[:12]}, {locked.artifact.bytes:,} bytes",
            f"{found.artifact.sha256[:12]}, {found.artifact.bytes:,} bytes",
            "The artifact was built anew.",
        )
    if found.flips is not None and locked.flips is not None and found.flips > locked.flips:
        yield Finding(
            DRIFT,
            "near-ties",
            f"{locked.flips} decisions",
            f"{found.flips} decisions",
            "When it was compiled, more decisions than before fell otherwise than eager's.",
        )


def _of_tolerances(
    locked: Mapping[str, Mapping[str, float]],
    found: Mapping[str, Mapping[str, float]],
    slack: float,
) -> Iterator[Finding]:
    for output in locked.keys() & found.keys():
        one, other = (_allowed(gates[output]) for gates in (locked, found))
        wider = one.keys() != other.keys() or any(
            other[key] > slack * one[key] or (key in _WIDER_IF_SMALLER and other[key] < one[key])
            for key in one
        )
        narrower = not wider and any(other[key] * slack < one[key] for key in one)
        if wider or narrower:
            yield Finding(
                BREAK if wider else DRIFT,
                f"tolerance of '{output}'",
                text_of(one),
                text_of(other),
                f"It is held to {'less' if wider else 'more'} than the lock says.",
            )


def _allowed(gate: Mapping[str, float]) -> dict[str, float]:
    """Returns what a gate allows, in the units of the output where it is a share of something."""
    found = {key: gate[key] for key in _WIDER_IF_SMALLER if key in gate}
    for key, whole in _WIDER_IF_LARGER.items():
        if key in gate:
            found[key] = gate[key] * (gate.get(whole, 1.0) if whole else 1.0)
    return found


def _of_model(locked: BundleFacts, found: BundleFacts) -> Iterator[Finding]:
    """Yields whether it is another model: by its hashes, and by what eager answered."""
    one, other = locked.model, found.model
    same_inputs = locked.reference.inputs_sha256 == found.reference.inputs_sha256
    moves = _moved_answers(locked, found) if same_inputs else []
    known = one is not None and other is not None
    same_graph = (
        one is not None
        and other is not None
        and (one.structure_sha256, one.torch) == (other.structure_sha256, other.torch)
    )
    if one is not None and other is not None:
        key = "weights_sha256" if same_graph else "weights_set_sha256"
        weights = getattr(one, key), getattr(other, key)
        if weights[0] != weights[1]:
            yield Finding(
                BREAK,
                "weights",
                weights[0][:12],
                weights[1][:12],
                "The bundle was compiled from other weights.",
            )
            yield from moves
            return
    if not same_inputs:
        yield Finding(
            DRIFT if same_graph else BREAK,
            "reference inputs",
            locked.reference.inputs_sha256[:12],
            found.reference.inputs_sha256[:12],
            "The bundle brings other reference inputs"
            + (
                "; it is the same model by its hashes."
                if same_graph
                else ", so nothing says that it is the same model."
            ),
        )
    elif known and not same_graph:
        yield Finding(
            BREAK if moves else DRIFT,
            "structure",
            text_of(one and one.structure),
            text_of(other and other.structure),
            "The graph is another"
            + (", and answers otherwise." if moves else "; its answers are the locked ones."),
        )
    yield from moves


def _moved_answers(locked: BundleFacts, found: BundleFacts) -> list[Finding]:
    """Returns the outputs whose reference is another than the locked one, on the same inputs."""
    one, other = locked.reference, found.reference
    moves = []
    for name in one.projections.keys() & other.projections.keys():
        samples, apart = moved(one.projections[name], other.projections[name])
        if not samples:
            continue
        count = len(one.projections[name])
        # a near-tie of eager turns few of them; another model may leave few as they were
        most = 2 * len(samples) > count
        moves.append(
            Finding(
                BREAK if most else DRIFT,
                f"reference of '{name}'",
                f"{count} samples",
                f"{len(samples)} of them moved by up to {apart:.1e} of their scale",
                "Eager answered otherwise on the same inputs: another model."
                if most
                else "Eager answered otherwise on some of the same inputs, as near-ties let it.",
            )
        )
    return moves


def _of_run(locked: LockedBundle, found: Measurement) -> Iterator[Finding]:
    if found.measured is None:
        if locked.measured:
            yield Finding(
                DRIFT, "run", "ran", "did not run", f"It could not run here: {found.why_not_run}"
            )
        return
    near = nearest(locked.measured, found.measured) if locked.measured else None
    for name, why in found.failures.items():
        excused = near is not None and _was_excused(name, near, found.measured)
        yield Finding(
            DRIFT if excused else BREAK,
            f"output '{name}'",
            "near-ties alone, as its source said" if excused else "inside its tolerance",
            "not held to its source" if excused else "wrong",
            f"Output '{name}' {why}.",
        )
    if near is None:
        yield Finding(
            DRIFT,
            "environment",
            "not run",
            str(found.measured.environment),
            "The lock has no run of this bundle.",
        )
        return
    if near.environment != found.measured.environment:
        yield Finding(
            DRIFT,
            "environment",
            text_of("; ".join(str(one.environment) for one in locked.measured)),
            str(found.measured.environment),
            "The lock has no run in this environment; it is compared with the nearest one.",
        )
    yield from _of_figures(near, found.measured)
    labelled = [one.labelled for one in (near, *locked.measured) if one.labelled is not None]
    yield from _of_labels(labelled[0] if labelled else None, found.measured.labelled)
    yield from _of_source(near, found.measured)


def _was_excused(name: str, locked: Measured, found: Measured) -> bool:
    """Returns whether an output was locked as one that near-ties bring out, and is as far off."""
    one, other = locked.outputs.get(name), found.outputs[name]
    return (
        locked.source is not None
        and found.source is None
        and one is not None
        and one.verdict == TIES_ONLY
        and other.rms <= _NEAR_FACTOR * one.rms
        and other.max_abs <= _NEAR_FACTOR * one.max_abs
    )


def nearest(locked: tuple[Measured, ...], found: Measured) -> Measured:
    """Returns the run of a lock in the environment that is most like another's."""
    its = found.environment

    def alike(one: Measured) -> tuple[bool, bool, bool, bool]:
        own = one.environment
        return (
            own.runtime == its.runtime,
            own.version == its.version,
            own.instruction_set == its.instruction_set,
            own.kernels == its.kernels,
        )

    return max(locked, key=alike)


def _of_figures(locked: Measured, found: Measured) -> Iterator[Finding]:
    for name in locked.outputs.keys() & found.outputs.keys():
        one, other = locked.outputs[name], found.outputs[name]
        if other.verdict == WRONG:
            continue  # said by its failure
        if _allows_more(one, other):
            yield Finding(
                BREAK,
                f"tolerance of '{name}'",
                f"{one.allowance:.1e} on average",
                f"{other.allowance:.1e} on average",
                "Its values may be off by more than the lock says.",
            )
        for what, before, now in _worse(one, other):
            yield Finding(
                DRIFT,
                f"{what} of '{name}'",
                f"{before:.3g}",
                f"{now:.3g}",
                "It is inside its tolerance, and farther off than when it was locked.",
            )
        if one.verdict != other.verdict and other.verdict == TIES_ONLY:
            yield Finding(
                DRIFT,
                f"verdict of '{name}'",
                one.verdict,
                other.verdict,
                "Near-ties alone bring it out.",
            )
    lower = set(found.layer_precisions) - set(locked.layer_precisions)
    if locked.layer_precisions and lower:
        same = locked.environment == found.environment
        yield Finding(
            BREAK if same else DRIFT,
            "precision of layers",
            ", ".join(locked.layer_precisions),
            ", ".join(found.layer_precisions),
            "The runtime computes some layers in another precision than when it was locked.",
        )
    calls = locked.kernel_calls, found.kernel_calls
    if calls[0] is not None and calls[1] is not None and calls[1] < calls[0]:
        yield Finding(
            DRIFT, "native kernels", f"{calls[0]} calls", f"{calls[1]} calls", "Fewer kernels ran."
        )


def _allows_more(one: OutputFigures, other: OutputFigures) -> bool:
    if one.allowance is None or other.allowance is None:
        return False
    return other.allowance > _ALLOWANCE_FACTOR * one.allowance


def _worse(one: OutputFigures, other: OutputFigures) -> Iterator[tuple[str, float, float]]:
    """Yields the figures that are farther off than threads and processors move them."""
    least = _ROUNDING * other.scale
    if other.share_of_allowed is not None and one.share_of_allowed is not None:
        least = _ERROR_SHARE * (other.allowance or 0.0)
        if other.share_of_allowed > max(_ERROR_FACTOR * one.share_of_allowed, 0.5):
            yield "largest error, of what is allowed,", one.share_of_allowed, other.share_of_allowed
    elif 1 - other.cosine > _COSINE_FACTOR * (1 - one.cosine) + _COSINE_ROUNDING:
        yield "cosine", one.cosine, other.cosine
    if other.rms > max(_ERROR_FACTOR * one.rms, least):
        yield "error", one.rms, other.rms
    before, now = one.top1_agreement, other.top1_agreement
    if before is not None and now is not None and now < before:
        yield "top-1 agreement", before, now


def _of_labels(locked: LabelledInputs | None, found: LabelledInputs | None) -> Iterator[Finding]:
    if locked is None:
        return
    if found is None:
        yield Finding(
            DRIFT,
            "labelled samples",
            f"{locked.samples} samples",
            "none",
            "The labelled samples of the lock were not given.",
        )
        return
    if locked.inputs_sha256 != found.inputs_sha256:
        yield Finding(
            BREAK,
            "labelled samples",
            f"{locked.samples} samples, {locked.inputs_sha256[:12]}",
            f"{found.samples} samples, {found.inputs_sha256[:12]}",
            "The samples are others than the locked ones, or are preprocessed otherwise.",
        )
        return
    lost = round((locked.accuracy - found.accuracy) * locked.samples)
    if locked.labels_sha256 != found.labels_sha256:
        yield Finding(
            BREAK,
            "labels",
            locked.labels_sha256[:12],
            found.labels_sha256[:12],
            f"The labels are others than the locked ones; of them {found.accuracy:.2%} are met, "
            f"and {locked.accuracy:.2%} of the locked ones were.",
        )
    elif lost > LOST_ACCURACY * locked.samples:
        yield Finding(
            BREAK,
            "accuracy",
            f"{locked.accuracy:.2%}",
            f"{found.accuracy:.2%}",
            f"It classifies {lost} of {locked.samples} samples fewer right.",
        )
    pairs = zip(locked.predictions.split(), found.predictions.split(), strict=True)
    turned = sum(one != other for one, other in pairs)
    if turned:
        yield Finding(
            DRIFT,
            "predictions",
            f"{locked.samples} samples",
            f"{turned} classified otherwise",
            "Some samples were classified otherwise than when it was locked.",
        )


def _of_source(locked: Measured, found: Measured) -> Iterator[Finding]:
    one, other = locked.source, found.source
    if other is None:
        return
    if other.verdict == WRONG:
        yield Finding(
            BREAK,
            "source",
            "not compared" if one is None else one.verdict,
            WRONG,
            f"The bundle is not the model of its source: {other.why_not}.",
            other.line,
        )
        return
    if one is None:
        return
    before, now = one.decision_agreement, other.decision_agreement
    if before is not None and now is not None and now < before:
        yield Finding(
            DRIFT,
            "decision agreement",
            f"{before:.4%}",
            f"{now:.4%}",
            "Fewer of its decisions are eager's, and near-ties explain them.",
        )
    if other.ties > one.ties:
        yield Finding(
            DRIFT,
            "near-ties against the source",
            f"{one.ties} samples",
            f"{other.ties} samples",
            "More samples than before are excused by a near-tie.",
        )


def text_of(value: Any) -> str:
    """Returns a locked value as a text of one line."""
    value = plain(value)
    if isinstance(value, str):
        return " ".join(value.split())
    if value is None:
        return "none"
    return json.dumps(value, ensure_ascii=False).replace('"', "")
