"""Measures how far the answers of one side are from those of another.

With r a value of the reference, c that of the candidate and d = |c - r|, over all values::

    SQNR      = 10 · log10(Σ r² / Σ d²)  decibels; more is nearer
    tolerance = max d / scale around r   the least local tolerance under which every value passes

The scale around a value is that of ``tokexport.runtimes.tolerances.neighbourhoods``, as gates use
it: what is said here is what a compile, ``verify`` and a report mean by a tolerance. What is a fill
on both sides is no signal, and left out of the SQNR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tokexport.runtimes.tolerances.comparison import Comparison, compare
from tokexport.runtimes.tolerances.neighbourhoods import differences, local_floor
from tokexport.runtimes.tolerances.scales import Floats, fills

#: The shares of values, in percent, whose largest difference is reported.
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class Figures:
    """The distance of one output of a candidate from that of a reference.

    Attributes:
        identical: Whether all values are equal, bit by bit but for the sign of zeros.
        comparison: The largest and the mean difference, cosine, top-1 agreement.
        percentiles: The difference that so many percent of the values do not exceed, by percent.
        sqnr_db: Signal to noise in decibels; infinite where nothing differs; None for whole
            numbers, and where a value cannot be compared.
        tolerance: The smallest local tolerance that passes, a share of the scale around each
            value; for whole numbers the share of them that differ; infinite where none passes.
    """

    identical: bool
    comparison: Comparison
    percentiles: dict[str, float]
    sqnr_db: float | None
    tolerance: float


def figures(reference: NDArray[Any], candidate: NDArray[Any]) -> Figures:
    """Compares two outputs.

    Args:
        reference: The values of the reference, samples first.
        candidate: Those of the candidate, of the same shape.

    Raises:
        ValueError: The shapes differ, or one output is of whole numbers and the other is not.
    """
    comparison = compare(reference, candidate)
    identical = np.array_equal(reference, candidate)
    if reference.dtype.kind != "f":
        error = np.abs(candidate.astype(np.float64) - reference.astype(np.float64))
        return Figures(identical, comparison, _percentiles(error), None, comparison.relative)
    error = differences(reference, candidate)
    return Figures(
        identical,
        comparison,
        _percentiles(error),
        _sqnr(reference, candidate, error),
        _tolerance(reference, error),
    )


def _percentiles(error: Floats) -> dict[str, float]:
    if not error.size:
        return {}
    # a value itself, not a number between two: nothing was off by that
    found = np.percentile(error, PERCENTILES, method="inverted_cdf")
    return {f"{share:g}": float(one) for share, one in zip(PERCENTILES, found, strict=True)}


def _sqnr(reference: NDArray[Any], candidate: NDArray[Any], error: Floats) -> float | None:
    if not np.isfinite(error).all():
        return None
    flat = reference.reshape(1) if reference.ndim == 0 else reference
    kept = ~(fills(flat) & fills(candidate.reshape(flat.shape))).reshape(error.shape)
    signal, noise = reference.astype(np.float64)[kept], error[kept]
    largest = max(float(np.abs(signal).max(initial=0.0)), float(noise.max(initial=0.0)))
    if largest == 0.0 or not noise.any():
        return math.inf
    # scaled to 1 first: squares of very large or very small numbers leave float64
    power, lost = (float(np.square(each / largest).sum()) for each in (signal, noise))
    if power == 0.0 or lost == 0.0:
        return -math.inf if power == 0.0 else math.inf
    return 10.0 * math.log10(power / lost)


def _tolerance(reference: NDArray[Any], error: Floats) -> float:
    """Returns the largest share of its own scale that a value is off by."""
    if not error.any():
        return 0.0
    scale = local_floor(reference, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(error == 0.0, 0.0, error / scale)
    return float(np.nan_to_num(share, nan=np.inf, posinf=np.inf).max())
