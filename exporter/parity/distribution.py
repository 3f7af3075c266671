"""Counts how the errors of an output are distributed, on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tokexport.runtimes.arrays import Array

#: The decades that are counted apart; what is smaller or larger goes to the ends.
LOWEST: Final = -10
HIGHEST: Final = 1
_BINS_A_DECADE: Final = 2
#: More values than this are thinned out evenly.
_MOST_VALUES: Final = 500_000


@dataclass(frozen=True)
class Distribution:
    """The absolute errors of an output, as a share of its largest magnitude.

    Attributes:
        counts: How many values have an error in each half decade, from 10^-10 on; what is smaller
            or larger is in the first or the last.
        equal: How many values have none.
        values: How many values were looked at.
        median: The median error.
        largest: The largest.
    """

    counts: tuple[int, ...]
    equal: int
    values: int
    median: float
    largest: float


def edges() -> tuple[float, ...]:
    """Returns the ends of the half decades, one more than there are counts, as powers of ten."""
    steps = (HIGHEST - LOWEST) * _BINS_A_DECADE
    return tuple(LOWEST + step / _BINS_A_DECADE for step in range(steps + 1))


def distributions(
    expected: Mapping[str, Array], found: Mapping[str, Array]
) -> dict[str, Distribution]:
    """Returns the distribution of every output that can be compared, by its name.

    Args:
        expected: The reference, by name.
        found: What a stage gave.
    """
    return {
        name: distribution(one, found[name])
        for name, one in expected.items()
        if name in found and one.shape == found[name].shape and one.size
    }


def distribution(expected: Array, found: Array) -> Distribution:
    """Returns the distribution of the errors of one output.

    Args:
        expected: Its reference, any shape.
        found: What is measured, of the same shape.
    """
    thin = -(-expected.size // _MOST_VALUES)
    one, other = (array.reshape(-1)[::thin].astype(np.float64) for array in (expected, found))
    finite = np.isfinite(one)
    scale = float(np.abs(one[finite]).max(initial=0.0)) or 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.where(one == other, 0.0, np.abs(one - other)) / scale
    off = np.nan_to_num(off, nan=np.inf)
    wrong = off[off > 0]
    limits = np.array(edges())[1:-1]
    places = np.searchsorted(limits, np.log10(wrong), side="right")
    counts: Any = np.bincount(places, minlength=len(limits) + 1)
    return Distribution(
        tuple(int(count) for count in counts),
        int(off.size - wrong.size),
        int(off.size),
        float(np.median(off)),
        float(off.max()),
    )
