"""Computes an interval of a mean that holds at every look, so that a series may stop on it.

An interval of Student that is looked at after each value leaves the true mean sooner or later. The
95 % intervals here contain it at all looks together with probability 0.95, for normal values of any
variance: Wang & Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with
unknown variance" (arXiv 2310.03722, after Lai 1976), with their Gaussian mixture over the effect
``mean / deviation``. After n values, with Student's statistic t of a mean and 1 / p the variance of
the mixture, an interval holds the means with

    sqrt(p / (n + p)) · ((1 + q) / (1 + q · p / (n + p))) ** (n / 2) < 1 / alpha,  q = t² / (n - 1)

Neighbouring values that resemble one another say less than so many independent ones: where their
correlation r is above 0, the variance is taken (1 + r) / (1 - r) times as large, that of a mean of
a first-order autoregression (Zwiers & von Storch, "Taking serial correlation into account in tests
of the mean", Journal of Climate 8, 1995).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

CONFIDENCE: Final = 0.95
#: The fewest values of an interval: of fewer, even a few that are equal by chance say too much.
MIN_VALUES: Final = 6
#: p above; 1/4 is nearest to the best for 6 to 30 values.
_PRECISION: Final = 0.25
#: The largest correlation that the variance is corrected for; beyond it the estimate is no good.
_MOST_CORRELATED: Final = 0.8


@dataclass(frozen=True)
class Interval:
    """A mean and how far the true one may be from it.

    Attributes:
        mean: The mean of the values.
        half_width: Half the width of the 95 % interval; infinite where there are too few values.
    """

    mean: float
    half_width: float


def interval_at_every_look(values: NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """Computes the interval of a mean after some values of a series.

    Args:
        values: The values so far, (n,), in the order in which they came.
        confidence: How sure the intervals of all looks are together.
    """
    count, mean = len(values), float(values.mean())
    ratio = _ratio(count, 1 - confidence)
    if count < MIN_VALUES or not np.isfinite(ratio):
        return Interval(mean, float("inf"))
    variance = float(values.var(ddof=1)) * _inflation(values)
    return Interval(mean, float(np.sqrt(ratio * (count - 1) * variance / count)))


def _ratio(count: int, alpha: float) -> float:
    """Returns the largest q of so many values; infinite where they exclude no mean."""
    whole = count + _PRECISION
    level = (whole / (_PRECISION * alpha**2)) ** (1 / count)
    room = whole - level * _PRECISION
    return (level - 1) * whole / room if room > 0 else float("inf")


def _inflation(values: NDArray[np.float64]) -> float:
    """Returns by how much the correlation of neighbours (n,) enlarges the variance of the mean."""
    off = values - values.mean()
    total = float(off @ off)
    if total == 0:
        return 1.0
    correlation = min(max(float(off[:-1] @ off[1:]) / total, 0.0), _MOST_CORRELATED)
    return (1 + correlation) / (1 - correlation)
