"""Compares what a node gives with what it should, and says whether rounding explains the rest.

Rounding explains what the node's own results move by when its inputs move by a few units in their
last place, and a small share of the scale around each value beside. A position or truth value is
undecided where it moves so: a sample in which no more of them differ holds near-ties, and no fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import differences, local_floor

#: How far the inputs of a node are moved, as a share of themselves, by the precision.
_STEP: Final = {"fp32": 2.0**-21, "fp16": 2.0**-10, "bf16": 2.0**-7, "int8": 2.0**-6}
#: The share of the scale around a value that is always allowed, by the precision.
FLOOR: Final = {"fp32": 2e-5, "fp16": 1e-2, "bf16": 4e-2, "int8": 1e-1}
#: How many times what the moved inputs do is allowed.
_FACTOR: Final = 4.0
#: How often the inputs are moved.
DRAWS: Final = 6


@dataclass(frozen=True)
class Difference:
    """How far a value is from what it should be.

    Attributes:
        error: The largest difference; of whole numbers and truth values, how many differ.
        allowed: How much rounding explains there; of whole numbers 0.
        said: The same as a clause: ``is off by 3.1e-01 at [0, 2], rounding explains 1.2e-06``.
    """

    error: float
    allowed: float
    said: str

    @property
    def is_fault(self) -> bool:
        """Whether rounding does not explain it."""
        return self.error > self.allowed


#: No difference.
NONE: Final = Difference(0.0, 0.0, "")


def compared(
    expected: Array, found: Array, moved: Sequence[Array] = (), precision: str = "fp32"
) -> Difference:
    """Compares one value, its leading axis the samples.

    Args:
        expected: What it should be.
        found: What it is.
        moved: What it becomes where the inputs of its node are moved; without any the share of the
            scale alone is allowed.
        precision: What it is computed in.
    """
    if expected.shape != found.shape or expected.dtype.kind != found.dtype.kind:
        return Difference(
            np.inf, 0.0, f"is {found.dtype} {found.shape}, not {expected.dtype} {expected.shape}"
        )
    if expected.dtype.kind != "f":
        return _compared_exactly(expected, found, moved)
    if _is_near(expected, found, FLOOR[precision]):
        return NONE
    allowed = local_floor(expected, FLOOR[precision])
    for one in moved:
        allowed = np.maximum(allowed, _FACTOR * np.nan_to_num(np.abs(one - moved[0]), nan=np.inf))
    error = differences(expected, found)
    error = np.where(np.isnan(expected) & np.isnan(found), 0.0, error)
    place = np.unravel_index(int(np.argmax(error / allowed)), error.shape)
    most, least = float(error[place]), float(allowed[place])
    where = ", ".join(str(int(one)) for one in place)
    return Difference(
        most, least, f"is off by {most:.1e} at [{where}], and rounding explains {least:.1e} there"
    )


def _compared_exactly(expected: Array, found: Array, moved: Sequence[Array]) -> Difference:
    differ = np.atleast_1d(expected != found)
    undecided = np.zeros(differ.shape, bool)
    for one in moved:
        undecided |= np.atleast_1d(one != moved[0])
    counts = [one.reshape(len(one), -1).sum(axis=1) for one in (differ, undecided)]
    differ[counts[0] <= counts[1]] = False  # a sample with near-ties, which explain as many
    count = int(differ.sum())
    what = "truth values" if expected.dtype.kind == "b" else "whole numbers"
    return Difference(float(count), 0.0, f"differs in {count} of {differ.size} {what}")


def _is_near(expected: Array, found: Array, floor: float) -> bool:
    """Returns whether every value is near by the largest of its row and of its column."""
    error, size = np.abs(found - expected), np.abs(expected)
    if not np.isfinite(error).all():
        return bool(np.array_equal(expected, found, equal_nan=True))
    for axis in range(1, size.ndim):
        scale = size.max(axis=axis, keepdims=True, initial=0.0)
        if (error > 0.5 * floor * scale).any():
            return False
    return size.ndim > 1 or not error.any()


def moved_inputs(
    inputs: Mapping[str, Array], precision: str = "fp32", seed: int = 0
) -> Iterator[dict[str, Array]]:
    """Yields the inputs of a node as they are, and then moved by a few units in the last place."""
    yield dict(inputs)
    draw = np.random.default_rng(seed)
    step = _STEP[precision]
    for _ in range(DRAWS):
        yield {
            name: array * (1 + step * draw.choice([-1.0, 1.0], array.shape)).astype(array.dtype)
            if array.dtype.kind == "f"
            else array
            for name, array in inputs.items()
        }


def distance(expected: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """Returns how far outputs are apart in all: the sum of their relative errors."""
    total = 0.0
    for name, one in expected.items():
        other = found[name]
        if one.shape != other.shape:
            return float("inf")
        if one.dtype.kind != "f":
            total += float((one != other).mean()) if one.size else 0.0
            continue
        wide, near = one.astype(np.float64), other.astype(np.float64)
        same = (wide == near) | (np.isnan(wide) & np.isnan(near))
        with np.errstate(invalid="ignore"):
            apart = np.where(same, 0.0, near - wide)
        size = float(np.linalg.norm(np.where(np.isfinite(wide), wide, 0.0))) or 1.0
        total += float(np.linalg.norm(np.nan_to_num(apart, nan=np.inf, posinf=np.inf))) / size
    return total
