"""Brings rounding errors to the columns of an output that has one row a sample.

The values of a row may have nothing in common: boxes in pixels beside a score. So each is also
compared on the scale of its column, the same value of all samples of its kind of inputs. With d how
far rounding moved each of the n values measured in a column, s its scale, and f how many times what
rounding does is allowed, one may be off by

    max(floor · s, f · max(2, 32 / n) · max d)

Few differences prove little: one of them may be near zero by chance. Where a kind has few samples,
those of all kinds are taken together, each in proportion to its own sample: d to the largest in it,
and the values to their root mean square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import FEWEST, axes_of
from tokexport.runtimes.tolerances.scales import fills, scales_of

#: How many differences of a column are measured at least.
_LEAST: Final = 3
#: The largest of n differences counts this many times over n,
_MANY: Final = 32
#: and at least so many times.
_AT_LEAST: Final = 2.0


@dataclass(frozen=True)
class Columns:
    """The rounding error of the columns of an output, (samples, values) each.

    Attributes:
        scale: The scale of the column of every value.
        rounding_error: How far rounding moves the values there.
        shares: The same as a share of the scale; 0 where a kind has few samples.
    """

    scale: Array
    rounding_error: Array
    shares: Array

    def of(self, rows: Array) -> Columns:
        """Returns those of some samples."""
        return Columns(self.scale[rows], self.rounding_error[rows], self.shares[rows])

    def limits(self, floor: float, factor: float) -> Array:
        """Returns how far every value may be off for its column.

        Args:
            floor: The share of a scale that is always allowed.
            factor: How many times what rounding does.
        """
        found: Array = np.maximum(floor * self.scale, factor * self.rounding_error)
        return found


def draws_of(outputs: Mapping[str, Array], rows: int, samples: int) -> int:
    """Returns how often a batch is run with rounded results, to estimate its columns.

    Args:
        outputs: What the model answers, (batches, …) by name.
        rows: How many batches are measured.
        samples: How many samples a batch has.
    """
    counts = [
        rows * (samples if per_sample else 1)
        for one in outputs.values()
        for per_sample in [one.ndim > 1 and one.shape[1] == samples]
        if one.dtype.kind == "f" and _has_columns(one.shape[1 if per_sample else 0 :])
    ]
    return -(-_LEAST // max(min(counts, default=_LEAST), 1))


def columns_of(
    flat: Array, measured: Array, parts: Sequence[Array], kinds: Sequence[Array], draws: int
) -> Columns | None:
    """Returns the rounding error of each column; None where an output has other neighbourhoods.

    Args:
        flat: What the model answers, (samples, …).
        measured: The samples that were measured.
        parts: How far they were moved, (measured, …) each.
        kinds: The samples of every kind of inputs.
        draws: Of how many runs each part is the largest, but for the distance from float64.
    """
    if not _has_columns(flat.shape) or not len(measured):
        return None
    filled = fills(flat).reshape(len(flat), -1)
    sizes = np.abs(flat.astype(np.float64)).reshape(filled.shape)
    sizes = np.where(filled, np.inf, sizes)
    off = np.maximum.reduce(parts).reshape(len(measured), -1)
    off = np.where(filled[measured], 0.0, off)
    found = _Measured(sizes, measured, off, len(parts) - 1 + draws)
    scale, rounding_error, shares = (np.zeros(sizes.shape) for _ in range(3))
    for rows in kinds:
        scale[rows], rounding_error[rows], shares[rows] = found.of_kind(rows)
    return Columns(scale, rounding_error, shares)


class _Measured:
    """The measurements of all columns; see ``columns_of``.

    Args:
        sizes: The magnitudes of all samples, (samples, values); infinite for a fill.
        measured: The samples that were measured.
        off: How far they were moved, (measured, values).
        runs: How many differences of each value that is the largest of.
    """

    def __init__(self, sizes: Array, measured: Array, off: Array, runs: int) -> None:
        self._sizes, self._off, self._runs = sizes, off, runs
        self._place = {int(row): place for place, row in enumerate(measured)}
        self._own = _root_mean_square(sizes)  # (samples, 1)
        most = off.max(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            to_most = np.where(most > 0, off / most, 0.0)
            to_own = np.where(np.isfinite(sizes), sizes / self._own, np.inf)
        self._rounding_shares = to_most.max(axis=0)
        self._scale_shares = scales_of(np.where(np.isnan(to_own), 0.0, to_own).T)[0]

    def of_kind(self, rows: Array) -> tuple[Array, Array, Array]:
        """Returns scale, rounding error and its share for a kind, (rows, values) each."""
        sizes = self._sizes[rows]
        own, of_zero = scales_of(sizes.T)
        scale = np.where(sizes == 0, of_zero, own)
        known = [int(row) for row in rows if int(row) in self._place]
        off = self._off[[self._place[row] for row in known]]
        most = off.max(axis=0, initial=0.0)
        if len(rows) < FEWEST:
            moved = off.max(axis=1, initial=0.0, keepdims=True)
            scale = np.maximum(scale, self._scale_shares * self._own[rows])
            rounding_error = np.maximum(most, self._rounding_shares * moved.max(initial=0.0))
            times = _times(self._runs * min(len(self._place), off.size))
            return (
                scale,
                np.broadcast_to(rounding_error * times, sizes.shape),
                np.zeros(sizes.shape),
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where((own > 0) & (most > 0), most / own, 0.0)
        rounding_error = self._grown(rows, known, most) * _times(self._runs * len(known))
        return scale, rounding_error, np.broadcast_to(share, sizes.shape)

    def _grown(self, rows: Array, known: Sequence[int], most: Array) -> Array:
        """Spreads the measurements of a kind over all of its samples, in proportion to larger ones.

        A column that held only zeros when it was measured gets the error of an ordinary one.
        """
        finite = np.where(np.isfinite(self._sizes), self._sizes, 0.0)
        top = finite[known].max(axis=0, initial=0.0)
        some = most[top > 0]
        most = np.where(top > 0, most, np.median(some) if some.size else 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            larger = np.maximum(
                finite[rows] / top, self._own[rows] / self._own[known].max(initial=0.0)
            )
        larger = np.nan_to_num(larger, nan=1.0, posinf=1.0)
        found: Array = most * np.maximum(larger, 1.0)
        return found


def _root_mean_square(sizes: Array) -> Array:
    """Returns that of the finite magnitudes of each sample, (samples, 1)."""
    finite = np.where(np.isfinite(sizes), sizes, 0.0)
    largest = finite.max(axis=1, initial=0.0, keepdims=True)
    unit = np.where(largest > 0, largest, 1.0)
    count = np.maximum(np.isfinite(sizes).sum(axis=1, keepdims=True), 1)
    found: Array = np.sqrt(np.square(finite / unit).sum(axis=1, keepdims=True) / count) * unit
    return found


def _has_columns(shape: tuple[int, ...]) -> bool:
    """Returns whether samples of a shape (samples, …) have one row of numbers: columns."""
    return math.prod(shape[1:]) > 1 and not axes_of(shape)


def _times(count: int) -> float:
    """Returns how many times the largest of so many differences counts."""
    return max(_AT_LEAST, _MANY / max(count, 1))
