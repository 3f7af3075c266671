"""How far each value of an output may be off: by the scale of its own neighbourhood.

One scale for a whole output, its largest value, makes a tolerance empty wherever one value
dominates: a row of padding at 1e9, boxes in pixels beside scores, one loud channel. So a value is
held to those around it. For an output with one row a sample, its neighbourhoods are the values of
its sample with the same index along one axis::

    logits (B, C)          the sample
    tokens (B, N, C)       its token, its channel
    maps   (B, C, H, W)    its channel, its line, its column
    one number a sample    the numbers of all samples

The scale of a neighbourhood is the root mean square without its largest 1 % (one value at least),
or 1.48 times the median of what is not zero where that is less. With s the scale of a neighbourhood
and e what rounding does to its values, measured on the model itself, a value x may be off by

    max(floor · |x|, min over its neighbourhoods of max(floor · s, e))

A value beyond ``LOUD`` scales of a neighbourhood does not belong to it, for its own sake and for
that of its neighbours; one that belongs to none may be off by a share of itself. Fills, which are
infinities and constants far beyond everything else, belong to nothing and are compared exactly, or
to the precision that is computed in.

Everything is computed in float64, with numpy alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]

#: The share of a neighbourhood's largest values that its scale leaves out.
LEFT_OUT: Final = 0.01
#: The median of a normal distribution, as a share of its deviation, turned over.
_OVER_MEDIAN: Final = 1.4826
#: How many scales of a neighbourhood a value may have to belong to it.
LOUD: Final = 10.0
#: The fewest values that make a neighbourhood.
FEWEST: Final = 4
#: A constant that repeats at this many times the scale of all else is a fill.
FILL_SCALES: Final = 1000.0
#: A value of one of these sizes is a fill wherever it is beyond ``FILL_SCALES``, alone too.
_ENDS: Final = (
    float(np.finfo(np.float64).max),
    float(np.finfo(np.float32).max),
    float(np.finfo(np.float16).max),
    3.3895313892515355e38,  # of bfloat16
)
#: How many kinds of finite fills an output may hold.
_FILL_KINDS: Final = 4
#: Bits of the mantissa, and the largest number, of each precision that can be computed in.
_MANTISSA: Final = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
_LARGEST: Final = {"float64": 1.7e308, "float32": 3.4e38, "float16": 65504.0, "bfloat16": 3.38e38}


def epsilon(dtype: str) -> float:
    """Returns the largest relative error of rounding to a floating type, half its last bit."""
    return float(2.0 ** -(_MANTISSA[dtype] + 1))


@dataclass(frozen=True)
class Noise:
    """What rounding does to the values of an output.

    Attributes:
        by_axis: For every axis of neighbourhoods, how far their values may be off for that alone,
            (samples, size): an absolute error; one column where the sample, or all samples, are the
            neighbourhood.
        share: How far a value that belongs to no neighbourhood may be off, as a share of itself,
            (samples,).
    """

    by_axis: tuple[Floats, ...]
    share: Floats

    def larger(self, other: Noise) -> Noise:
        """Returns the larger of two for every neighbourhood."""
        pairs = zip(self.by_axis, other.by_axis, strict=True)
        return Noise(
            tuple(np.maximum(one, two) for one, two in pairs), np.maximum(self.share, other.share)
        )

    def times(self, factor: float) -> Noise:
        """Returns so many times as much for every neighbourhood."""
        return Noise(tuple(one * factor for one in self.by_axis), self.share * factor)


class Neighbourhoods:
    """The neighbourhoods of the values of one floating output, and their scales.

    Args:
        reference: What is right, (samples, …).

    Attributes:
        axes: The axes that a neighbourhood is one index of; empty where it is the whole sample, or
            all samples where each has one number.
        fills: Which values are fills.
    """

    def __init__(self, reference: NDArray[Any]) -> None:
        self._values = np.abs(reference.astype(np.float64))
        self._reference = reference
        self.axes = _axes(reference.shape)
        self.fills = fills(reference)

    @property
    def is_one_number(self) -> bool:
        """Whether a sample has too few values, so that all samples are one neighbourhood."""
        return math.prod(self._values.shape[1:]) < FEWEST

    @cached_property
    def scales(self) -> tuple[Floats, ...]:
        """The scale of every neighbourhood, (samples, size) for each axis; else (samples, 1)."""
        samples = len(self._values)
        known = np.where(self.fills, np.inf, self._values)
        if self.is_one_number:
            return (np.full((samples, 1), _scale_of(known.reshape(1, -1))[0]),)
        if not self.axes:
            return (_scale_of(known.reshape(samples, math.prod(known.shape[1:])))[:, None],)
        found = []
        for axis in self.axes:
            moved = np.moveaxis(known, axis, 1)
            size = moved.shape[1]
            found.append(_scale_of(moved.reshape(samples * size, -1)).reshape(samples, size))
        return tuple(found)

    def belongs(self, position: int) -> Flags:
        """Tells which values belong to their neighbourhood along one of the axes."""
        inside: Flags = self._values <= LOUD * self._spread(self.scales[position], position)
        return inside & ~self.fills

    @property
    def alone(self) -> Flags:
        """Tells which values belong to no neighbourhood, and are no fills."""
        inside = [self.belongs(position) for position in range(len(self.scales))]
        found: Flags = ~self.fills & ~np.logical_or.reduce(inside)
        return found

    def noise(self, difference: NDArray[Any]) -> Noise:
        """Returns the largest of some differences in every neighbourhood.

        Args:
            difference: Absolute differences that rounding explains, (samples, …).
        """
        samples = len(self._values)
        by_axis = []
        for position, scale in enumerate(self.scales):
            part = np.where(self.belongs(position), difference, 0.0)
            if self.axes and not self.is_one_number:
                part = np.moveaxis(part, self.axes[position], 1)
            others = tuple(range(scale.ndim if self.axes else 1, part.ndim))
            by_axis.append(part.max(axis=others, initial=0.0).reshape(scale.shape))
        if self.is_one_number:
            by_axis = [np.full((samples, 1), by_axis[0].max(initial=0.0))]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(self.alone, difference / self._values, 0.0)
        return Noise(tuple(by_axis), share.max(axis=tuple(range(1, share.ndim)), initial=0.0))

    def allowed(self, noise: Noise, floor: float, computed_in: str = "float32") -> Floats:
        """Returns how far every value may be off, (samples, …); nothing for an infinite one.

        Args:
            noise: What rounding explains.
            floor: The share of a scale that is always allowed.
            computed_in: The precision that is computed in, which fills are held to.
        """
        least = np.full(self._values.shape, np.inf)
        for position, scale in enumerate(self.scales):
            own = np.maximum(floor * scale, noise.by_axis[position])
            spread = np.where(self.belongs(position), self._spread(own, position), np.inf)
            np.minimum(least, spread, out=least)
        values = np.where(np.isfinite(self._values), self._values, 0.0)
        alone = self._spread(np.maximum(noise.share, floor)[:, None], None) * values
        least = np.where(np.isinf(least), alone, np.maximum(least, floor * values))
        least = np.where(self.fills, 4 * epsilon(computed_in) * values, least)
        found: Floats = np.maximum(least, np.finfo(np.float32).tiny)
        return found

    def share_of_scale(self, noise: Noise) -> tuple[Floats, ...]:
        """Returns what rounding explains as a share of every neighbourhood's own scale."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return tuple(
                np.where((one > 0) & (scale > 0), one / scale, 0.0)
                for one, scale in zip(noise.by_axis, self.scales, strict=True)
            )

    def _spread(self, numbers: Floats, position: int | None) -> Floats:
        """Brings numbers (samples, size) of an axis, or (samples, 1), beside the values."""
        ndim = self._values.ndim
        if position is None or not self.axes or self.is_one_number:
            return numbers.reshape(len(numbers), *[1] * (ndim - 1))
        shape = [1] * ndim
        shape[0], shape[self.axes[position]] = numbers.shape
        return numbers.reshape(shape)


@dataclass(frozen=True)
class Worst:
    """The value of an output that uses most of what it is allowed.

    Attributes:
        share: Its error over what is allowed; above 1 it is outside. Infinite where a value is not
            finite and the other side's is, and for a NaN.
        index: Where it stands in the output.
        error: Its absolute error.
        allowed: What is allowed for it.
    """

    share: float
    index: tuple[int, ...]
    error: float
    allowed: float


def as_samples(array: NDArray[Any], samples: int) -> NDArray[Any]:
    """Brings an output (batches, …) to (samples, …).

    Args:
        array: The output.
        samples: How many samples a batch has; an output whose leading axis in a batch has another
            size counts as one sample a batch.
    """
    if array.ndim > 1 and array.shape[1] == samples:
        return array.reshape(-1, *array.shape[2:])
    return array


def worst(reference: NDArray[Any], candidate: NDArray[Any], allowed: Floats) -> Worst | None:
    """Returns the value that uses most of what it is allowed; None where there are no values.

    Args:
        reference: What is right.
        candidate: What is measured, of that shape.
        allowed: How far each may be off, of that shape.
    """
    if not reference.size:
        return None
    error = differences(reference, candidate, allowed)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(error == 0, 0.0, error / allowed)
    place = int(np.argmax(share))
    index = tuple(int(part) for part in np.unravel_index(place, share.shape))
    return Worst(float(share[index]), index, float(error[index]), float(allowed[index]))


def within_local_floor(reference: NDArray[Any], candidate: NDArray[Any], floor: float) -> bool:
    """Tells whether every value is off by no more than a share of its neighbourhood's scale.

    Args:
        reference: What is right, a floating output of any shape, samples first.
        candidate: What is measured, of that shape.
        floor: The share.
    """
    most = worst(reference, candidate, local_floor(reference, floor))
    return most is None or most.share <= 1


def local_floor(reference: NDArray[Any], floor: float) -> Floats:
    """Returns a share of the smallest scale around each value of a floating output.

    Args:
        reference: The output, of any shape, samples first.
        floor: The share.
    """
    flat = reference.reshape(1) if reference.ndim == 0 else reference
    around = Neighbourhoods(flat)
    still = Noise(tuple(np.zeros_like(scale) for scale in around.scales), np.zeros(len(flat)))
    return around.allowed(still, floor).reshape(reference.shape)


def differences(
    reference: NDArray[Any], candidate: NDArray[Any], allowed: Floats | None = None
) -> Floats:
    """Returns the absolute differences; infinite where one side has no number to compare.

    Equal infinities are no distance apart. A fill that leaves the range of a half type comes back
    as an infinity or as the largest number of that type: where ``allowed`` says that a value is
    held to no more than that, it is taken for what it was.
    """
    wide, other = reference.astype(np.float64), candidate.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(other - wide)
    error = np.where(wide == other, 0.0, np.nan_to_num(error, nan=np.inf, posinf=np.inf))
    if allowed is not None:
        error = np.where(_is_saturated(wide, other, allowed), 0.0, error)
    return error


def _is_saturated(wide: Floats, other: Floats, allowed: Floats) -> Flags:
    """Tells which values are fills beyond what a half type holds, and came back at its end."""
    found = np.zeros(wide.shape, bool)
    size = np.abs(wide)
    for dtype in ("float16", "bfloat16"):
        end = _LARGEST[dtype]
        held = np.isclose(allowed, 4 * epsilon(dtype) * size, rtol=1e-3, atol=0.0)
        ends = np.isinf(other) | (np.abs(other) >= end * (1 - epsilon(dtype)))
        found |= held & (size > end) & ends & (np.sign(wide) == np.sign(other))
    return found


def _axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes along which one index makes a neighbourhood."""
    inner = [axis for axis in range(1, len(shape)) if shape[axis] > 1]
    values = math.prod(shape[1:])
    if len(inner) < 2:
        return ()
    return tuple(axis for axis in inner if values // shape[axis] >= FEWEST)


def _scale_of(values: Floats) -> Floats:
    """Returns the scale of each row of magnitudes (rows, values); infinities are left out."""
    ordered = np.sort(values, axis=1)
    counts = np.isfinite(ordered).sum(axis=1)
    zeros = (ordered == 0).sum(axis=1)
    ordered = np.where(np.isfinite(ordered), ordered, 0.0)
    kept = np.maximum(counts - np.ceil(LEFT_OUT * counts).astype(np.int64), np.minimum(counts, 1))
    if ordered.shape[1] == 0:
        return np.zeros(len(ordered))
    largest = ordered.max(axis=1, initial=0.0)
    unit = np.where(largest > 0, largest, 1.0)[:, None]
    sums = np.cumsum(np.square(ordered / unit), axis=1)
    last = np.maximum(kept - 1, 0)[:, None]
    rms = np.sqrt(np.take_along_axis(sums, last, axis=1)[:, 0] / np.maximum(kept, 1)) * unit[:, 0]
    middle = np.minimum(zeros + (counts - zeros) // 2, ordered.shape[1] - 1)[:, None]
    median = np.take_along_axis(ordered, middle, axis=1)[:, 0]
    found: Floats = np.where(zeros < counts, np.minimum(rms, _OVER_MEDIAN * median), 0.0)
    return found


def fills(reference: NDArray[Any]) -> Flags:
    """Tells which values are fills: infinities, and constants far beyond everything else.

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
    if not rest.size or (count < 2 and top not in _ENDS):
        return None
    scale = float(_scale_of(rest.reshape(1, -1))[0])
    # What is small beside a 0 is no constant far beyond the rest: masks of 0 and 1 have no fills.
    return kind if scale > 0 and top >= FILL_SCALES * scale else None
