"""Determines whether rounding explains a decision that fell differently.

Eager decided on its scores s, a later stage on its own s', which differ by rounding. A decision
that fell differently is a tie if both of these hold, and an error otherwise:

* every score is eager's, within what its own neighbourhood allows (``held_scores``);
* the stage decided right on its own scores: of two that it put in order none is worse than the one
after it, and of two that are equal the lower index comes first where the decision says so;
  a number that it rounded lies on the step that came out.

Then two scores change places only where |sᵢ - sⱼ| ≤ |s'ᵢ - sᵢ| + |s'ⱼ - sⱼ|: by their own errors,
whatever others are off by. A kernel that computes scores and decides in one step may have decided
on other scores than it shows; there each may be worse by the rounding error of these two.

Eager's scores say whether its decision is near a tie: some score that it chose, and some that it
did not choose, are no farther apart than the sum of their errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tokexport.exporter.ties.elementwise_choices import Comparison, Staircase, compared, stepped
from tokexport.exporter.ties.held_scores import HeldScores, nearest, share
from tokexport.graph_passes.torch_passes.graph.decision_kinds import Decision, DecisionKind
from tokexport.runtimes.arrays import Array

_NO_CHOICE: Final = "names a row that is not there, or one twice"
_NOT_IN_ORDER: Final = "gives the rows that stay in another order than theirs"
_UNSTABLE: Final = "takes equal scores in another order than that of their places"


@dataclass(frozen=True)
class DecisionDiff:
    """The difference between a stage's decision and eager's.

    Attributes:
        flips: How many positions or truth values differ.
        margin: How much worse the stage's choice is by eager's scores, as a share of the scale
            around them; infinite where it is no valid choice, for example a row taken twice.
        score_error: The largest difference of the stage's scores from eager's, as a share of that
            scale.
        tie_gap: How far eager's choice is from the nearest other one, by its own scores, as a share
            of that scale; infinite without another one.
        is_near: Whether the score error could have made another choice.
        why_not: Why rounding does not explain how the stage decided, a clause; '' where it does.
    """

    flips: int
    margin: float
    score_error: float
    tie_gap: float
    is_near: bool
    why_not: str = ""

    @property
    def is_tie(self) -> bool:
        """Whether rounding explains the flips, if there are any."""
        return not self.why_not


def compare_decision(
    decision: Decision,
    scores: Sequence[HeldScores],
    eager: Mapping[str, Array],
    stage: Mapping[str, Array],
) -> DecisionDiff:
    """Compares a stage's decision with its own scores, and these with eager's.

    Args:
        decision: The decision.
        scores: The values named in its ``scores``.
        eager: What eager decided: the values under the names in ``replayed``.
        stage: What the stage would decide: under ``own``.
    """
    own = {position: stage[name] for position, name in decision.own.items()}
    flips = sum(_apart(eager[n], own[position]) for position, n in decision.replayed.items())
    score_error = max((one.score_error for one in scores), default=0.0)
    parts = _parts(decision, [_decided_on(decision, one) for one in scores], eager, own)
    if isinstance(parts, str):
        return DecisionDiff(flips, np.inf, score_error, np.inf, False, f"it {parts}")
    too_far = next((one.too_far for one in scores if one.too_far), "")
    why_not = f"its scores {too_far}" if too_far else ""
    for part in parts:
        why_not = why_not or part.wrong()
    return DecisionDiff(
        flips,
        max((part.margin() for part in parts), default=0.0),
        score_error,
        min((part.tie_gap() for part in parts), default=np.inf),
        any(part.is_near() for part in parts),
        why_not,
    )


def _apart(eager: Array, own: Array) -> int:
    """Returns how many results differ; two NaN are equal."""
    differ = eager != own
    if eager.dtype.kind == own.dtype.kind == "f":
        differ &= ~(np.isnan(eager) & np.isnan(own))
    return int(differ.sum())


def _decided_on(decision: Decision, scores: HeldScores) -> HeldScores:
    """Returns scores with signs that make the best the largest."""
    if decision.turned:
        scores = scores.each(lambda array: np.swapaxes(array, -1, -2))
    return scores.negative() if decision.negative else scores


@dataclass(frozen=True)
class _Ordering:
    """The best of some rows of scores, in order.

    Attributes:
        scores: The scores (rows, n).
        chosen: The positions that the stage chose, (rows, count).
        stable: Whether of equal scores the lower index comes first.
        as_set: Whether eager could have chosen the same in any order.
        count: How many are chosen.
    """

    scores: HeldScores
    chosen: Array
    stable: bool
    as_set: bool = False

    @property
    def count(self) -> int:
        return int(self.chosen.shape[1])

    def wrong(self) -> str:
        """Returns why the choice is wrong by the stage's own scores; '' if it is right."""
        shown, rounding = self.scores.shown, self.scores.rounding
        worse = self._worse(shown + rounding, shown - rounding)
        if worse.size and worse.max() > 0:
            most = share(worse, self._behind(self.scores.scale))
            return f"it chooses what is worse by {most:.1e} of the scale of its own scores"
        if self.stable and self._is_unstable():
            return f"it {_UNSTABLE}"
        return ""

    def margin(self) -> float:
        """How much worse the stage's choice is by eager's scores, as a share of their scale."""
        eager = self.scores.eager
        return share(self._worse(eager, eager), self._behind(self.scores.scale))

    def tie_gap(self) -> float:
        """How far eager's choice is from the next, as a share of the scale."""
        order = _best_first(self.scores.eager)
        eager, scale = (_at(array, order) for array in (self.scores.eager, self.scores.scale))
        with np.errstate(invalid="ignore"):
            steps = eager[:, :-1] - eager[:, 1:]
        around, cuts = np.minimum(scale[:, :-1], scale[:, 1:]), self._cuts()
        return nearest(steps[:, cuts], around[:, cuts])

    def is_near(self) -> bool:
        """Returns whether the score error could have turned eager's choice."""
        order = _best_first(self.scores.eager)
        eager, off = (_at(array, order) for array in (self.scores.eager, self.scores.off))
        with np.errstate(invalid="ignore"):
            least = np.minimum.accumulate(eager - off, axis=1)[:, :-1]
            most = np.maximum.accumulate((eager + off)[:, ::-1], axis=1)[:, ::-1][:, 1:]
            return bool((least < most)[:, self._cuts()].any())

    def _cuts(self) -> slice:
        """The positions where an order is cut: after each chosen one, or after a whole set."""
        return slice(self.count - 1 if self.as_set else 0, self.count)

    def _worse(self, before: Array, behind: Array) -> Array:
        """Returns by how much each score is better than one that was put before it, (rows, n-1).

        Args:
            before: The scores as those before it may be seen, (rows, n).
            behind: The scores as it may be seen.
        """
        before = _at(before, self._places()).copy()
        before[:, self.count :] = np.inf
        least = np.minimum.accumulate(before, axis=1)[:, :-1]
        with np.errstate(invalid="ignore"):
            worse = self._behind(behind) - least
        return np.where(self._behind(behind) > least, worse, 0.0)

    def _behind(self, array: Array) -> Array:
        return _at(array, self._places())[:, 1:]

    def _places(self) -> Array:
        """Returns what the stage chose, then all others, the best first, (rows, n)."""
        left: Array = np.ones(self.scores.shown.shape, bool)
        np.put_along_axis(left, self.chosen, False, axis=1)
        others: Array = np.lexsort((-self.scores.shown, ~left))
        return np.concatenate(
            [self.chosen, others[:, : self.scores.shown.shape[1] - self.count]], axis=1
        )

    def _is_unstable(self) -> bool:
        """Returns whether, of two equal scores that are exact, the higher index is first."""
        places = self._places()
        shown, rounding = (
            _at(array, places) for array in (self.scores.shown, self.scores.rounding)
        )
        equal = (shown[:, :-1] == shown[:, 1:]) & (rounding[:, :-1] == 0) & (rounding[:, 1:] == 0)
        turned = equal & (places[:, :-1] > places[:, 1:])
        return bool(turned[:, : self.count].any())


def _parts(
    decision: Decision,
    scores: Sequence[HeldScores],
    eager: Mapping[str, Array],
    own: Mapping[int, Array],
) -> Sequence[_Ordering | Comparison | Staircase] | str:
    """Returns the parts of a decision, or why the stage's is invalid."""
    match decision.kind:
        case DecisionKind.COMPARISON:
            flipped = eager[decision.replayed[0]] != own[0]
            return [compared(decision, scores, own[0], flipped)]
        case DecisionKind.STAIRCASE:
            return [stepped(decision, scores[0], own[0], eager[decision.replayed[0]])]
        case DecisionKind.ORDER:
            (chosen,) = own.values()
            return _ordered(decision, scores[0], chosen)
        case DecisionKind.MATCH:
            return _matched(decision, scores[0], [own[position] for position in range(3)])


def _ordered(decision: Decision, scores: HeldScores, chosen: Array) -> Sequence[_Ordering] | str:
    dim = decision.dim
    if dim is None:
        scores, chosen = scores.each(lambda array: array.reshape(1, -1)), chosen.reshape(1, -1)
    else:
        if chosen.ndim < scores.eager.ndim:  # of an arg-max that drops its axis
            chosen = np.expand_dims(chosen, dim)
        scores, chosen = scores.each(lambda array: _as_rows(array, dim)), _as_rows(chosen, dim)
    if not _are_positions(chosen, scores.eager.shape[1]):
        return _NO_CHOICE
    return [_Ordering(scores, chosen, decision.stable)]


def _matched(
    decision: Decision, scores: HeldScores, own: Sequence[Array]
) -> Sequence[_Ordering] | str:
    """Returns the partners of the rows that merge, and the rows themselves."""
    kept, src, dst = own
    rows = np.concatenate([src, kept], axis=1)
    count, width = scores.eager.shape[1:]
    if rows.shape[1] != count or not _are_positions(rows, count):
        return _NO_CHOICE
    if not _are_positions(dst.reshape(-1, 1), width):
        return _NO_CHOICE
    by_index = decision.ordered == "index"
    if by_index and not (np.diff(kept, axis=1) > 0).all():
        return _NOT_IN_ORDER
    partners = scores.each(lambda array: _at(array, src[:, :, None]).reshape(-1, width))
    best = _best_of_rows(scores)
    taken = src if by_index else rows
    return [
        _Ordering(partners, dst.reshape(-1, 1), decision.stable),
        _Ordering(best, taken, decision.stable, as_set=by_index),
    ]


def _best_of_rows(scores: HeldScores) -> HeldScores:
    """Returns the best score of every row (B, Na, Nb): (B, Na)."""
    low, high = (scores.shown + sign * scores.rounding for sign in (-1, 1))
    shown = scores.shown.max(axis=2)
    with np.errstate(invalid="ignore"):
        rounding = np.maximum(high.max(axis=2) - shown, shown - low.max(axis=2))
    place = scores.eager.argmax(axis=2)[:, :, None]
    allowed, scale = (
        np.take_along_axis(array, place, axis=2)[:, :, 0]
        for array in (scores.allowed, scores.scale)
    )
    return HeldScores(scores.eager.max(axis=2), shown, allowed, np.nan_to_num(rounding), scale)


def _as_rows(array: Array, dim: int) -> Array:
    """Brings an axis to the end and all others into one before it."""
    moved = np.moveaxis(array, dim, -1)
    return moved.reshape(-1, moved.shape[-1])


def _best_first(scores: Array) -> Array:
    return np.argsort(-scores, axis=1, kind="stable")


def _at(array: Array, places: Array) -> Array:
    found: Array = np.take_along_axis(array, places, axis=1)
    return found


def _are_positions(index: Array, size: int) -> bool:
    """Returns whether every row of an index holds positions, none of them twice."""
    if index.size == 0:
        return True
    ordered = np.sort(index, axis=1)
    inside = ordered.min() >= 0 and ordered.max() < size
    return bool(inside and (np.diff(ordered, axis=1) > 0).all())
