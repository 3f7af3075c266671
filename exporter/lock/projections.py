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
    """Returns the projections of an output, a text of numbers for each of its first samples.

    All samples behind them are one more, as a long one.

    Args:
        output: Its values, (samples, …); what is no finite number, or a fill, counts as 0.
    """
    flat = np.where(np.isfinite(output), output, 0).astype(np.float64)
    if output.dtype.kind == "f":
        flat = np.where(fills(output), 0.0, flat)
    flat = flat.reshape(len(flat), -1)
    rows = [*flat[:MOST_SAMPLES]]
    if len(flat) > MOST_SAMPLES:
        rows.append(flat[MOST_SAMPLES:].reshape(-1))
    return tuple(" ".join(f"{one:.{_DIGITS}g}" for one in _projected(row)) for row in rows)


def _projected(sample: Array) -> Array:
    """Returns the projections of a sample, (values,); the values themselves where they are few."""
    size = len(sample)
    if size <= VECTORS:
        return sample
    signs = np.stack([_signs(number, size) for number in range(VECTORS)])
    found: Array = signs @ sample / np.sqrt(size)
    return found


def moved(before: Sequence[str], now: Sequence[str]) -> tuple[tuple[int, ...], float]:
    """Returns the samples that moved between two lists of projections, and by how much at most.

    Args:
        before: The projections of an output, a text for each sample.
        now: Those of another.

    Returns:
        The samples, and the largest estimated root of the mean squared difference of one, as a
        share of the largest projection.
    """
    one, other = ([numbers(row) for row in rows] for rows in (before, now))
    if [len(row) for row in one] != [len(row) for row in other]:
        return tuple(range(len(one))), float("inf")
    scale = max((float(np.abs(row).max(initial=0.0)) for row in one), default=0.0) or 1.0
    pairs = zip(one, other, strict=True)
    apart = [float(np.sqrt(np.square(a - b).mean())) / scale for a, b in pairs]
    return tuple(at for at, far in enumerate(apart) if far > MOVED), max(apart, default=0.0)


def numbers(row: str) -> Array:
    """Returns the projections of a sample, of their text.

    Raises:
        ValueError: One of them is no number.
    """
    found = np.array([float(number) for number in row.split()], np.float64)
    if not found.size or not np.isfinite(found).all():
        raise ValueError(f"projections are finite numbers, and these are {row!r:.40}")
    return found


def _signs(number: int, size: int) -> Array:
    """Returns so many signs, the same whatever the version of numpy: bits of a hash."""
    bits = np.frombuffer(hashlib.shake_256(_SEED % number).digest(-(-size // 8)), np.uint8)
    found: Array = np.unpackbits(bits)[:size] * 2.0 - 1.0
    return found
