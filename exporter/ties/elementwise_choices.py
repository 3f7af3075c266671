"""Judges decisions on single numbers: comparisons, and steps of a staircase."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from tokexport.exporter.ties.held_scores import HeldScores, nearest, share
from tokexport.graph_passes.torch_passes.graph.decision_kinds import Decision
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import epsilon


@dataclass(frozen=True)
class Comparison:
    """Numbers that are compared one by one.

    Attributes:
        rule: What compares: ``gt``.
        first: The numbers before the sign.
        second: Those behind it.
        chosen: What the stage says.
        flipped: Where eager says otherwise.
    """

    rule: str
    first: HeldScores
    second: HeldScores
    chosen: Array
    flipped: Array

    def wrong(self) -> str:
        """Returns why the choice is wrong by the stage's own numbers; '' if it is right."""
        true, false = _may_be(self.rule, *self._seen(self.first), *self._seen(self.second))
        wrong = np.where(self.chosen, ~true, ~false)
        if not wrong.any():
            return ""
        return f"it gets {int(wrong.sum())} of its own comparisons wrong"

    def margin(self) -> float:
        """The largest distance of two numbers that eager compares differently."""
        return share(np.where(self.flipped, self._apart(), 0.0), self._scale())

    def tie_gap(self) -> float:
        """The smallest distance of two numbers that eager compares."""
        return nearest(self._apart(), self._scale())

    def is_near(self) -> bool:
        """Returns whether the errors of the numbers could have turned eager's comparison."""
        return bool((self._apart() < self.first.off + self.second.off).any())

    def _seen(self, scores: HeldScores) -> tuple[Array, Array]:
        return scores.shown - scores.rounding, scores.shown + scores.rounding

    def _apart(self) -> Array:
        with np.errstate(invalid="ignore"):
            apart = np.abs(self.first.eager - self.second.eager)
        return np.where(self.first.eager == self.second.eager, 0.0, apart)

    def _scale(self) -> Array:
        return np.minimum(self.first.scale, self.second.scale)


@dataclass(frozen=True)
class Staircase:
    """Numbers that each lie on a step.

    Attributes:
        rule: The function that gives the step: ``floor``.
        numbers: The numbers, in units of the height of a step.
        chosen: The steps that the stage gives.
        eager: Those that eager gives.
        determined: Where the rule says what comes of a number: a cast does not, of what it cannot
            hold.
    """

    rule: str
    numbers: HeldScores
    chosen: Array
    eager: Array
    determined: Array

    def wrong(self) -> str:
        """Returns why the steps are wrong by the stage's own numbers; '' if they are right."""
        shown, rounding = self.numbers.shown, self.numbers.rounding
        low, high = _ends(self.rule, self.chosen)
        beside = (shown + rounding < low) | (shown - rounding > high)
        wrong = np.where(rounding == 0, _STAIRCASES[self.rule](shown) != self.chosen, beside)
        count = int((wrong & self.determined).sum())
        return f"it gives {count} of its own numbers another {self.rule}" if count else ""

    def margin(self) -> float:
        """The distance of eager's numbers from the chosen steps."""
        low, high = _ends(self.rule, self.chosen)
        with np.errstate(invalid="ignore"):
            beyond = np.maximum(low - self.numbers.eager, self.numbers.eager - high)
        off = np.nan_to_num(np.maximum(beyond, 0.0), nan=0.0)
        return share(np.where(self.determined, off, 0.0), self.numbers.scale)

    def tie_gap(self) -> float:
        """The distance of eager's numbers from the ends of their steps."""
        return nearest(np.where(self.determined, self._left(), np.inf), self.numbers.scale)

    def is_near(self) -> bool:
        """Returns whether the errors of the numbers could have brought one to another step."""
        return bool((self.determined & (self._left() < self.numbers.off)).any())

    def _left(self) -> Array:
        low, high = _ends(self.rule, self.eager)
        with np.errstate(invalid="ignore"):
            left = np.minimum(self.numbers.eager - low, high - self.numbers.eager)
        found: Array = np.nan_to_num(left, nan=np.inf, posinf=np.inf)
        return found


_STAIRCASES: Final[Mapping[str, Callable[[Array], Array]]] = {
    "round": np.rint,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "sign": np.sign,
}


def _ends(rule: str, step: Array) -> tuple[Array, Array]:
    """Returns the least and the largest number that lie on each step, or next to it."""
    far: Array = np.full(step.shape, np.inf)
    match rule:
        case "round":
            return step - 0.5, step + 0.5
        case "floor":
            return step, step + 1
        case "ceil":
            return step - 1, step
        case "trunc":
            return step - (step <= 0), step + (step >= 0)
        case _:
            return np.where(step < 0, -far, 0.0), np.where(step > 0, far, 0.0)


def _may_be(rule: str, a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Array]:
    """Returns whether a comparison of [a, b] with [c, d] may be true, and may be false."""
    sure_equal = (a == b) & (c == d) & (a == c)
    return {
        "gt": (b > c, a <= d),
        "ge": (b >= c, a < d),
        "lt": (a < d, b >= c),
        "le": (a <= d, b > c),
        "eq": ((a <= d) & (b >= c), ~sure_equal),
        "ne": (~sure_equal, (a <= d) & (b >= c)),
    }[rule]


def compared(
    decision: Decision, scores: Sequence[HeldScores], chosen: Array, flipped: Array
) -> Comparison:
    """Returns the comparison of a decision.

    Args:
        decision: The decision.
        scores: The numbers that it is about, one value or two.
        chosen: What the stage says.
        flipped: Where eager says otherwise.
    """
    number = np.asarray(decision.beside)
    exact = HeldScores(number, number, np.zeros(()), np.zeros(()), np.asarray(np.inf))
    first, second = (*scores, exact)[:2]
    shape = np.broadcast_shapes(first.eager.shape, second.eager.shape)
    first, second = (
        one.each(lambda array: np.broadcast_to(array, shape)) for one in (first, second)
    )
    return Comparison(decision.rule, first, second, chosen, flipped)


def stepped(decision: Decision, scores: HeldScores, chosen: Array, eager: Array) -> Staircase:
    """Returns the staircase of a decision.

    Args:
        decision: The decision.
        scores: The numbers that it is about.
        chosen: What the stage makes of them.
        eager: What eager makes of its own.
    """
    unit = 10.0**decision.digits
    numbers = scores.each(lambda array: array * unit)
    if decision.digits:  # the product with the unit is rounded, too
        rounding = numbers.rounding + 2 * epsilon("float32") * np.abs(numbers.shown)
        numbers = replace(numbers, rounding=rounding)
    determined = np.isfinite(numbers.shown)
    if chosen.dtype.kind in "iu":
        bounds = np.iinfo(chosen.dtype)
        determined &= (numbers.shown > bounds.min - 1.0) & (numbers.shown < bounds.max + 1.0)
    chosen, eager = (np.rint(unit * array.astype(np.float64)) for array in (chosen, eager))
    return Staircase(decision.rule, numbers, chosen, eager, determined)
