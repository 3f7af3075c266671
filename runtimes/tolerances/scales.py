"""Computes the scale of magnitudes, and finds the fills that do not count.

Everything is computed in float64, with numpy alone.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]

#: The share of a neighbourhood's largest values that its scale leaves out.
LEFT_OUT: Final = 0.01
#: The median of a normal distribution, as a share of its deviation, turned over.
_OVER_MEDIAN: Final = 1.4826
#: A constant that repeats at this many times the scale of all else is a fill.
FILL_SCALES: Final = 1000.0
#: A value of one of these sizes is a fill wherever it is beyond ``FILL_SCALES``, alone too.
ENDS: Final = (
    float(np.finfo(np.float64).max),
    float(np.finfo(np.float32).max),
    float(np.finfo(np.float16).max),
    3.3895313892515355e38,  # of bfloat16
)
#: How many kinds of finite fills an output may hold.
_FILL_KINDS: Final = 4


def scales_of(values: Floats) -> tuple[Floats, Floats]:
    """Returns the scale of the nonzero values in each row of magnitudes (rows, values).

    Beside it, the scale of zeros; infinities are left out of both.
    """
    ordered = np.sort(values, axis=1)
    counts = np.isfinite(ordered).sum(axis=1)
    zeros = (ordered == 0).sum(axis=1)
    ordered = np.where(np.isfinite(ordered), ordered, 0.0)
    if ordered.shape[1] == 0:
        return np.zeros(len(ordered)), np.zeros(len(ordered))
    largest = ordered.max(axis=1, initial=0.0)
    unit = np.where(largest > 0, largest, 1.0)[:, None]
    sums = np.cumsum(np.square(ordered / unit), axis=1)

    def rms(count: NDArray[np.int64], before: NDArray[np.int64]) -> Floats:
        kept = np.maximum(count - np.ceil(LEFT_OUT * count).astype(np.int64), np.minimum(count, 1))
        last = np.maximum(before + kept - 1, 0)[:, None]
        total = np.take_along_axis(sums, last, axis=1)[:, 0]
        found: Floats = np.sqrt(total / np.maximum(kept, 1)) * unit[:, 0]
        return found

    middle = np.minimum(zeros + (counts - zeros) // 2, ordered.shape[1] - 1)[:, None]
    median = _OVER_MEDIAN * np.take_along_axis(ordered, middle, axis=1)[:, 0]
    some = zeros < counts
    own = np.where(some, np.minimum(rms(counts - zeros, zeros), median), 0.0)
    with_zeros = np.where(some, np.minimum(rms(counts, np.zeros_like(zeros)), median), 0.0)
    return own, with_zeros


def median_of(scales: Floats) -> Floats:
    """Returns the median of the nonzero values in each row; 0 without any."""
    ordered = np.sort(scales, axis=1)
    zeros = (ordered == 0).sum(axis=1)
    middle = np.minimum((zeros + ordered.shape[1]) // 2, ordered.shape[1] - 1)[:, None]
    found: Floats = np.take_along_axis(ordered, middle, axis=1)[:, 0]
    return found


def fills(reference: NDArray[Any]) -> Flags:
    """Returns which values are fills: infinities, and constants far beyond all other values.

    Args:
        reference: A floating output, (samples, …).
    """
    found: Flags = ~np.isfinite(reference)
    values = np.abs(reference.astype(np.float64))
    for sample in range(len(reference)):
        own, marked = values[sample], found[sample, ...]
        for _ in range(_FILL_KINDS):
            kind = _largest_fill(own, marked)
            if kind is None:
                break
            if found.ndim == 1:
                found[sample] = True
                break
            marked |= kind
    return found


def _largest_fill(values: Floats, marked: Flags) -> Flags | None:
    """Returns where the largest of the unmarked values stands if it is a fill, else None."""
    left = np.where(marked, -1.0, values)
    top = float(left.max(initial=-1.0))
    if top <= 0:
        return None
    kind: Flags = left == top
    count, rest = int(kind.sum()), left[(left >= 0) & ~kind]
    if not rest.size or (count < 2 and top not in ENDS):
        return None
    scale = float(scales_of(rest.reshape(1, -1))[1][0])
    # A small constant beside zeros is no fill: masks of 0 and 1 have none.
    return kind if scale > 0 and top >= FILL_SCALES * scale else None
