"""Keeps the answers of a model as a few numbers a sample, from which a distance can be estimated.

A sample of an output with n values v is projected onto vectors s of random signs::

    p = Σ s v / √n          the mean of (p - p')² over the vectors estimates the mean of (v - v')²

so two lists of projections say how far two outputs are apart, without the outputs (the sketch of
Alon, Matias and Szegedy, "The space complexity of approximating the frequency moments", 1996).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.scales import fills

#: How many vectors, also the most values of a small sample; and of how many samples.
VECTORS: Final = 12
MOST_SAMPLES: Final = 8
#: The signs are bits of the hash of this with the number of the vector in it.
_SEED: Final = b"projection %d"
#: Digits that are kept of a projection.
_DIGITS: Final = 7
#: The distance of two samples, as a share of the largest projection, from which on they differ.
#: Eager on two processors is 1e-6 to 1e-4 apart in float32.
MOVED: Final = 1e-3


def projections(output: Array) -> tuple[str, ...]:
    """Returns the projections of the first samples of an output, a text of numbers for each.

    Args:
        output: Its values, (samples, …); what is no finite number, or a fill, counts as 0.
    """
    own = output[:MOST_SAMPLES]
    flat = np.where(np.isfinite(own), own, 0).astype(np.float64)
    if own.dtype.kind == "f":
        flat = np.where(fills(own), 0.0, flat)
    flat = flat.reshape(len(flat), -1)
    size = flat.shape[1]
    if size > VECTORS:
        signs = np.stack([_signs(number, size) for number in range(VECTORS)])
        flat = flat @ signs.T / np.sqrt(size)
    return tuple(" ".join(f"{one:.{_DIGITS}g}" for one in row) for row in flat)


def moved(before: Sequence[str], now: Sequence[str]) -> tuple[tuple[int, ...], float]:
    """Returns the samples that moved between two lists of projections, and by how much at most.

    Args:
        before: The projections of an output, a text for each sample.
        now: Those of another.

    Returns:
        The samples, and the largest estimated root of the mean squared difference of one, as a
        share of the largest projection.
    """
    one, other = (
        np.array([[float(number) for number in row.split()] for row in rows])
        for rows in (before, now)
    )
    if one.shape != other.shape:
        return tuple(range(len(one))), float("inf")
    scale = float(np.abs(one).max(initial=0.0)) or 1.0
    apart = np.sqrt(np.square(one - other).mean(axis=1)) / scale
    return tuple(int(at) for at in np.flatnonzero(apart > MOVED)), float(apart.max(initial=0.0))


def _signs(number: int, size: int) -> Array:
    """Returns so many signs, the same whatever the version of numpy: bits of a hash."""
    bits = np.frombuffer(hashlib.shake_256(_SEED % number).digest(-(-size // 8)), np.uint8)
    found: Array = np.unpackbits(bits)[:size] * 2.0 - 1.0
    return found
