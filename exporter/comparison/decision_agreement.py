"""Measures, decision by decision, how a bundle's artifact decides beside eager."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokexport.exporter.ties.decision_margins import DecisionDiff
from tokexport.graph_passes.torch_passes.graph.decision_kinds import Decision
from tokexport.graph_passes.torch_passes.graph.decisions import ReplayGraph
from tokexport.runtimes.arrays import Array


@dataclass(frozen=True)
class DecisionAgreement:
    """How one decision of the graph falls in an artifact, over all samples.

    Attributes:
        line: The user's line that it came from; '' where that is not known.
        operator: What decides: ``tokexport.bipartite_match``.
        positions: How many positions or truth values it gives.
        agreeing: The share of them that are eager's where the artifact decides everything itself,
            so that a decision before it may have changed its tokens.
        flips: How many differ where eager decides everything before it.
        margin: The largest distance of a choice that differs from eager's, as a share of the scale
            of the scores.
        score_error: The largest error of its scores, as a share of their scale.
        explained: Whether the errors of the scores explain every flip: rounding in floating
            precisions, and in int8 whatever its scores are off by.
        why_not: Why they do not, a clause; '' where they do.
    """

    line: str
    operator: str
    positions: int
    agreeing: float
    flips: int
    margin: float
    score_error: float
    explained: bool
    why_not: str = ""


def agreements(
    replay: ReplayGraph,
    eager: Mapping[str, Array],
    free: Mapping[str, Array],
    differences: Iterable[tuple[Decision, DecisionDiff]],
    *,
    quantised: bool = False,
) -> tuple[DecisionAgreement, ...]:
    """Returns the agreement of every decision, in the order of the graph.

    Args:
        replay: The rewritten graph whose decisions are inputs.
        eager: What eager decides, (batches, …) by the names of the inputs.
        free: What the artifact decides by itself, (batches, …) by the names of the results.
        differences: How each decision falls with eager's decisions before it.
        quantised: Whether the artifact computes in int8, which no rounding error bounds.
    """
    by_decision: dict[int, list[DecisionDiff]] = {}
    for decision, diff in differences:
        by_decision.setdefault(id(decision), []).append(diff)
    return tuple(
        _agreement(decision, eager, free, by_decision.get(id(decision), []), quantised)
        for decision in replay.decisions
    )


def _agreement(
    decision: Decision,
    eager: Mapping[str, Array],
    free: Mapping[str, Array],
    diffs: Sequence[DecisionDiff],
    quantised: bool,
) -> DecisionAgreement:
    pairs = [
        (eager[name], free[decision.own[position]]) for position, name in decision.replayed.items()
    ]
    positions = sum(one.size for one, _ in pairs)
    equal = sum(int(np.equal(one, other).sum()) for one, other in pairs)
    flipped = [diff for diff in diffs if diff.flips]
    reasons = [_why_not(diff, quantised) for diff in flipped]
    return DecisionAgreement(
        line=decision.line,
        operator=decision.operator,
        positions=positions,
        agreeing=equal / positions if positions else 1.0,
        flips=sum(diff.flips for diff in diffs),
        margin=max((diff.margin for diff in diffs), default=0.0),
        score_error=max((diff.score_error for diff in diffs), default=0.0),
        explained=not any(reasons),
        why_not=next(filter(None, reasons), ""),
    )


def _why_not(diff: DecisionDiff, quantised: bool) -> str:
    """Returns why the errors of the scores do not explain flips; '' where they do."""
    if not quantised:
        return diff.why_not
    if diff.margin <= 2 * diff.score_error:  # each of two scores may be off by that
        return ""
    far = f"its choice is worse by {diff.margin:.1e} of the scale of the scores"
    return f"{far}, which are off by {diff.score_error:.1e}"


def agreement_over_all(decisions: Sequence[DecisionAgreement]) -> float | None:
    """Returns the share of all positions that are eager's; None without a decision."""
    positions = sum(one.positions for one in decisions)
    if not positions:
        return None
    return sum(one.agreeing * one.positions for one in decisions) / positions
