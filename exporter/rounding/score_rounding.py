"""Measures the rounding error of scores, in each of their neighbourhoods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import LOUD, Neighbourhoods, RoundingError

#: The largest of fewer differences than this counts for more.
_FEW: Final = 16


@dataclass(frozen=True)
class Moved:
    """The rounding error of one value in one batch.

    Attributes:
        rounding_error: How far, by neighbourhood, (samples, …).
        scales: The scales of the neighbourhoods.
        size: How many numbers the value has.
    """

    rounding_error: RoundingError
    scales: tuple[Array, ...]
    size: int

    def times(self, factor: float) -> Moved:
        """Returns a multiple of the error of every neighbourhood."""
        return replace(self, rounding_error=self.rounding_error.times(factor))


#: How far rounding moves scores, by the name of the value in the traced graph and by batch.
Scores = Mapping[str, Mapping[int, Moved]]


def by_sample(array: Array, samples: int) -> Array:
    """Brings a value of a batch to (samples, …); without a samples axis it counts as one sample."""
    return array if array.ndim and len(array) == samples else array[None]


def moved(exact: Array, difference: Array, samples: int) -> Moved:
    """Returns the rounding error of a value of a batch.

    Args:
        exact: The value.
        difference: How far rounding moved each of its numbers.
        samples: How many samples the batch has.
    """
    around = Neighbourhoods(by_sample(exact, samples))
    rounding_error = around.rounding_error(by_sample(difference, samples))
    alone, filled = (int(np.count_nonzero(one)) for one in (around.alone, around.computed_fills))
    rounding_error = replace(
        rounding_error,
        share=rounding_error.share * few(alone),
        fills=rounding_error.fills * few(filled),
    )
    return Moved(rounding_error, around.scales, exact.size)


def few(count: Array | int) -> Array:
    """Returns how many times the largest of so many differences counts."""
    found: Array = np.maximum(1.0, (_FEW / np.maximum(count, 1)) ** 0.5)
    return found


def pooled(measured: Mapping[int, Moved], batch: int, around: Neighbourhoods) -> RoundingError:
    """Returns the rounding error of a value in a batch, measured there or on other batches.

    From others it is the largest in each neighbourhood, in proportion where the scale is larger
    now, or far smaller: one sample of large values says nothing of a sample of small ones.

    Args:
        measured: What was measured, by batch, of the same kind of inputs.
        batch: The batch.
        around: The neighbourhoods of the value there.
    """
    none = np.zeros(len(around.scales[0]))
    found = RoundingError(tuple(map(np.zeros_like, around.scales)), none, none)
    for one in [measured[batch]] if batch in measured else measured.values():
        found = found.larger(_in_proportion(one, around, own=batch in measured))
    return found


def _in_proportion(one: Moved, around: Neighbourhoods, own: bool) -> RoundingError:
    samples = len(around.scales[0])
    share, fills = (
        np.full(samples, a.max(initial=0.0))
        for a in (one.rounding_error.share, one.rounding_error.fills)
    )
    fits = [scales.shape[1:] for scales in one.scales]
    if fits != [scales.shape[1:] for scales in around.scales]:  # it was spread over further axes
        least = min(float(axis.max(initial=0.0)) for axis in one.rounding_error.by_axis)
        return RoundingError(
            tuple(np.full(scales.shape, least) for scales in around.scales), share, fills
        )
    by_axis = []
    for rounding_error, before, now in zip(
        one.rounding_error.by_axis, one.scales, around.scales, strict=True
    ):
        times_few = few(one.size // rounding_error.size)
        if own:
            by_axis.append(rounding_error * times_few)
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            times = np.where(before > 0, now[:, None] / before, 1.0)
        times = np.where(times < 1 / LOUD, times * LOUD, np.maximum(times, 1.0))
        by_axis.append((rounding_error * times_few * times).max(axis=1))
    if own:
        share, fills = one.rounding_error.share, one.rounding_error.fills
    return RoundingError(tuple(by_axis), share, fills)
