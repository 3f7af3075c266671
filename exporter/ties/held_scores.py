"""Compares a stage's scores with eager's, each on the scale of its own neighbourhood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from tokexport.exporter.rounding.score_rounding import Moved, by_sample, pooled
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import LARGEST, Neighbourhoods, epsilon, worst


@dataclass(frozen=True)
class Allowance:
    """The tolerance of scores.

    Attributes:
        floor: The share of the scale of a neighbourhood that is always allowed.
        measured: What rounding does to them, by batch.
        batch: The batch.
        samples: How many samples it has.
        computed_in: The precision that the stage computes in.
        decides_on_shown: Whether the stage decides on the very numbers that it shows. A kernel that
            computes scores and decides in one, or in more bits than it stores, does not.
    """

    floor: float = 0.0
    measured: Mapping[int, Moved] | None = None
    batch: int = 0
    samples: int = 1
    computed_in: str = "float32"
    decides_on_shown: bool = True


@dataclass(frozen=True)
class HeldScores:
    """One of the values that a decision is about, all of one shape.

    Attributes:
        eager: Eager's numbers.
        shown: Those that the stage shows.
        allowed: How far each may be off.
        rounding: How far from what it shows the stage may have decided on.
        scale: The scale of what is around each; infinite for a fill.
    """

    eager: Array
    shown: Array
    allowed: Array
    rounding: Array
    scale: Array

    @property
    def error(self) -> Array:
        """How far each is off; equal infinities are no distance apart."""
        with np.errstate(invalid="ignore"):
            apart = np.where(self.eager == self.shown, 0.0, np.abs(self.eager - self.shown))
        return np.nan_to_num(apart, nan=np.inf, posinf=np.inf)

    @property
    def off(self) -> Array:
        """How far from eager's the stage may have decided on each; 0 for a fill."""
        return np.where(np.isfinite(self.scale), self.error + self.rounding, 0.0)

    @property
    def too_far(self) -> str:
        """Returns which score is off by more than the tolerance; '' for none."""
        most = worst(self.eager, self.shown, self.allowed)
        if most is None or most.share <= 1:
            return ""
        scale = self.scale[most.index]
        unit = scale if np.isfinite(scale) and scale > 0 else 1.0
        of = " of their scale" if unit == scale else ""
        return f"are off by {most.error / unit:.1e}{of}, and {most.allowed / unit:.1e} is allowed"

    @property
    def score_error(self) -> float:
        """The largest error as a share of the scale around it."""
        return share(self.error, self.scale)

    def each(self, change: Callable[[Array], Array]) -> HeldScores:
        """Returns the scores with a function applied to all arrays."""
        return HeldScores(*(change(getattr(self, one.name)) for one in fields(self)))

    def part(self, rows: slice) -> HeldScores:
        """Returns some of them along the leading axis."""
        return self.each(lambda array: array[rows])

    def negative(self) -> HeldScores:
        """Returns the scores with the other sign."""
        return HeldScores(-self.eager, -self.shown, self.allowed, self.rounding, self.scale)


def hold_scores(eager: Array, stage: Array, allowance: Allowance | None = None) -> HeldScores:
    """Compares one value of a stage with eager's.

    Args:
        eager: The numbers of eager, of a batch.
        stage: Those of the stage, of that shape.
        allowance: What they may be off by.
    """
    allowance = allowance or Allowance()
    flat = by_sample(eager.astype(np.float64), allowance.samples)
    around = Neighbourhoods(flat)
    rounding_error = pooled(allowance.measured or {}, allowance.batch, around)
    still = around.rounding_error(np.zeros(flat.shape))
    allowed = around.allowed(rounding_error, allowance.floor, allowance.computed_in)
    rounding: Array = np.zeros_like(flat)
    if not allowance.decides_on_shown:
        rounding = around.allowed(rounding_error, 0.0)
        none = around.fills | (rounding <= np.finfo(np.float32).tiny)
        rounding = np.where(none, 0.0, rounding)
    scale = around.allowed(still, 1.0)
    scale = np.where(scale <= np.finfo(np.float32).tiny, 1.0, scale)
    scale = np.where(around.fills, np.inf, scale)
    shown = _without_ends(eager.astype(np.float64), stage.astype(np.float64), allowance.computed_in)
    arrays = (flat, shown, allowed, rounding, scale)
    return HeldScores(*(array.reshape(eager.shape) for array in arrays))


def _without_ends(eager: Array, stage: Array, computed_in: str) -> Array:
    """Replaces the last number of a type by infinity where eager has an infinity.

    A maximum of nothing but -inf is the least number of its type in OpenVINO, which starts there.
    This changes no decision.
    """
    ends = np.zeros(stage.shape, bool)
    for dtype in {"float32", computed_in}:
        ends |= np.abs(stage) >= LARGEST[dtype] * (1 - epsilon(dtype))
    ends &= np.isinf(eager) & (np.sign(eager) == np.sign(stage))
    return np.where(ends, eager, stage)


def share(numbers: Array, scale: Array) -> float:
    """Returns the largest of some numbers as a share of the scale around each; 0 for none."""
    with np.errstate(invalid="ignore"):
        found = np.where(np.isfinite(scale), numbers / scale, 0.0)
    return float(found.max(initial=0.0))


def nearest(steps: Array, scale: Array) -> float:
    """Returns the smallest step as a share of its scale; two fills offer no choice."""
    with np.errstate(invalid="ignore"):
        found = np.where(np.isfinite(scale), steps / scale, np.inf)
    return float(np.nan_to_num(found, nan=np.inf, posinf=np.inf).min(initial=np.inf))
