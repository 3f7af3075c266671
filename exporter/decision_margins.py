"""Says of a decision that fell differently whether rounding explains it.

A decision is about scores. Eager decided on its scores s, a later step on its own s', which differ
by rounding: ε = max |s' - s|. What the step chose is at most 2ε worse by eager's scores than what
eager chose, whatever the decision: an order, an arg-max, a match. A comparison a > b falls
differently only where |a - b| is at most the sum of both errors. So a choice beyond that is wrong,
and so are scores that are off by more than the gate allows.

How near a decision is to a tie is told by eager's scores alone: the smallest step between what it
chose and the next best thing it could have chosen. A step beyond 2ε cannot fall the other way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tokexport.graph_passes.decisions import Decision, DecisionKind
from tokexport.runtimes.base import Array
from tokexport.runtimes.scales import fills

#: What a mask puts in the place of scores is this large, and a fill beside all others.
LEAST_FILL: Final = 1e3


@dataclass(frozen=True)
class Fall:
    """How a step decided, held against eager.

    Attributes:
        flips: How many positions or truth values differ.
        margin: How much worse the step's choice is by eager's scores, as a share of their scale;
            infinite where it is no choice at all, such as a row taken twice.
        noise: The largest difference of the step's scores from eager's, as a share of their scale.
        edge: How far eager's choice is from the nearest other one, by its own scores, as a share of
            their scale; infinite where there is no other.
        scale: The largest of eager's scores without fills; 1 where that is 0.
    """

    flips: int
    margin: float
    noise: float
    edge: float
    scale: float = field(default=1.0, compare=False)

    def is_tie(self, tolerance: float) -> bool:
        """Tells whether rounding, within the tolerance that arithmetic has, explains the flips."""
        return self.noise <= tolerance and self.margin <= 2 * self.noise

    @property
    def is_near(self) -> bool:
        """Whether rounding such as the step's could have made another choice."""
        return self.noise > 0 and self.edge <= 2 * self.noise


def held_against(decision: Decision, eager: Mapping[str, Array], step: Mapping[str, Array]) -> Fall:
    """Compares a step's scores and choices with eager's.

    Args:
        decision: The decision.
        eager: The scores of eager, and what it decided: the values under the names in ``scores``
            and ``told``.
        step: The scores of the step and what it would decide: under ``scores`` and ``own``.
    """
    scores = [_decided_on(decision, eager[name]) for name in decision.scores]
    near = [_decided_on(decision, step[name]) for name in decision.scores]
    scale = max(map(_largest, scores), default=0.0) or 1.0
    errors = [_distance(one, other) for one, other in zip(scores, near, strict=True)]
    choices = {
        position: (eager[name], step[decision.own[position]])
        for position, name in decision.told.items()
    }
    flips = sum(int((one != other).sum()) for one, other in choices.values())
    match decision.kind:
        case DecisionKind.COMPARISON:
            first, second = (*scores, np.zeros(()))[:2]
            one, other = choices[0]
            margin, noise = _of_comparison(first, second, one != other), sum(errors) / 2
            with np.errstate(invalid="ignore"):
                edge = _nearest(first - second)
        case DecisionKind.ORDER:
            ((one, other),) = choices.values()
            margin, noise = _of_order(scores[0], one, other, decision.dim), errors[0]
            count = one.shape[decision.dim] if one.ndim == scores[0].ndim else 1
            edge = _nearest(_steps(scores[0], count, decision.dim))
        case DecisionKind.MATCH:
            own = [step[decision.own[position]] for position in range(3)]
            margin, noise = _of_match(scores[0], own, decision.ordered), errors[0]
            taken = step[decision.own[1]].shape[1]
            edge = _edge_of_match(scores[0], taken, decision.ordered)
    return Fall(flips, margin / scale, noise / scale, edge / scale, scale)


def _decided_on(decision: Decision, scores: Array) -> Array:
    """Returns scores as a decision reads them, in float64."""
    scores = scores.astype(np.float64)
    scores = np.swapaxes(scores, -1, -2) if decision.turned else scores
    return -scores if decision.negative else scores


def _largest(scores: Array) -> float:
    """Returns the largest score; what a mask puts in the place of scores, such as -1e4, is none."""
    size = np.abs(scores.reshape(1, -1))
    return float(size[~fills(size) | (size < LEAST_FILL)].max(initial=0.0))


def _distance(one: Array, other: Array) -> float:
    """Returns the largest difference; equal infinities are no distance apart."""
    with np.errstate(invalid="ignore"):
        apart = np.where(one == other, 0.0, np.abs(one - other))
    return float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max(initial=0.0))


def _of_comparison(first: Array, second: Array, flipped: Array) -> float:
    first, second, flipped = np.broadcast_arrays(first, second, flipped)
    return _distance(first[flipped], second[flipped])


def _of_order(scores: Array, one: Array, other: Array, dim: int) -> float:
    """Holds the scores in the order one chose to those in the order the other chose."""
    if one.ndim < scores.ndim:  # of an arg-max that drops its axis
        one, other = np.expand_dims(one, dim), np.expand_dims(other, dim)
    if not _are_positions(other, scores.shape[dim], dim):
        return np.inf
    first, second = (np.take_along_axis(scores, order, dim) for order in (one, other))
    return _distance(first, second)


def _of_match(scores: Array, own: list[Array], ordered: str) -> float:
    """Holds a step's match to eager's: its sources, their partners, and the rows that are left."""
    kept, src, dst = own
    rows = np.concatenate([src, kept], axis=1)
    if rows.shape[1] != scores.shape[1] or not _are_positions(rows, scores.shape[1], 1):
        return np.inf
    if not _are_positions(dst[..., None], scores.shape[2], 2):
        return np.inf
    best = scores.max(axis=2)
    reached = np.take_along_axis(scores, src[:, :, None], 1)
    reached = np.take_along_axis(reached, dst[:, :, None], 2)[:, :, 0]
    margin = _distance(np.take_along_axis(best, src, 1), reached)
    if ordered == "score":
        return max(margin, _of_order(best, np.argsort(-best, axis=1, kind="stable"), rows, 1))
    if not (np.diff(kept, axis=1) > 0).all():
        return np.inf
    best_of_eager = -np.sort(-best, axis=1)[:, : src.shape[1]]
    return max(margin, _distance(best_of_eager, np.take_along_axis(best, src, 1)))


def _edge_of_match(scores: Array, taken: int, ordered: str) -> float:
    """Returns the step to the nearest other match: another partner, or another row that merges."""
    best = scores.max(axis=2)
    merged = np.argsort(-best, axis=1, kind="stable")[:, :taken]
    partners = np.take_along_axis(scores, merged[:, :, None], 1)
    rows = _steps(best, best.shape[1] if ordered == "score" else taken, 1)
    if ordered != "score":
        rows = rows[:, max(taken - 1, 0) :]  # in which order they merge makes no difference
    return min(_nearest(_steps(partners, 1, 2)), _nearest(rows))


def _steps(scores: Array, count: int, dim: int) -> Array:
    """Returns the steps between the ``count`` best along an axis, and from the last to the next."""
    best = -np.sort(-scores, axis=dim).take(range(min(count + 1, scores.shape[dim])), axis=dim)
    with np.errstate(invalid="ignore"):
        return np.asarray(-np.diff(best, axis=dim))


def _nearest(steps: Array) -> float:
    """Returns the smallest step; between two that are infinitely bad there is no choice."""
    return float(np.nan_to_num(np.abs(steps), nan=np.inf, posinf=np.inf).min(initial=np.inf))


def _are_positions(index: Array, size: int, dim: int) -> bool:
    """Tells whether an index holds positions along an axis, none of them twice."""
    if index.size == 0:
        return True
    ordered = np.sort(index, axis=dim)
    inside = ordered.min() >= 0 and ordered.max() < size
    return bool(inside and (np.diff(ordered, axis=dim) > 0).all())
