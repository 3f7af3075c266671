"""Computes how far each value of an output may be off, from the scale of its neighbourhood.

One scale for a whole output, its largest value, makes a tolerance meaningless wherever one value
dominates: a row of padding at 1e9, boxes in pixels beside scores, one large channel. So a value is
    compared with those around it. For an output with one row a sample, its neighbourhoods are the
    values of its sample with the same index along one axis::

    logits (B, C)          the sample, its column
    tokens (B, N, C)       its token, its channel
    maps   (B, C, H, W)    its channel, its line, its column
    one number a sample    the numbers of all samples

The scale of a neighbourhood is the root mean square of what is not zero in it, without the largest
1 % (one value at least), or 1.48 times the median where that is less. Zeros say nothing about the
size of the others; their own scale is the root mean square with zeros. With s the scale of a
neighbourhood and e what rounding does to its values, measured on the model itself, a value x may be
off by

    max(floor · |x|, min over its neighbourhoods of max(floor · s, e))

A value beyond ``LOUD`` scales of a neighbourhood does not belong to it: it would loosen the
tolerance of its neighbours, and they would tighten its own. Nor does a value that is small by
chance where its other neighbourhood is as large: it is computed from large numbers. A value that
belongs to none may be off by a share of itself. Fills, which are infinities and constants far
beyond everything else, belong to no neighbourhood. They are compared exactly, or to the precision
that is computed in; or within their rounding error, where they were computed.

A column is one value of all samples, also of those not at hand: ``limits`` takes its tolerance as
an argument. With it, rows too short for a scale have no other neighbourhood.

Everything is computed in float64, with numpy alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tokexport.runtimes.tolerances.scales import ENDS, Flags, Floats, fills, median_of, scales_of

#: How many scales of a neighbourhood a value may have to belong to it.
LOUD: Final = 10.0
#: The factor of scales beyond which values of a neighbourhood count as those of a crossing one.
_APART: Final = 3.0
#: The fewest values that make a neighbourhood.
FEWEST: Final = 4
#: Bits of the mantissa, and the largest number, of each precision that can be computed in.
_MANTISSA: Final = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
LARGEST: Final = {"float64": 1.7e308, "float32": 3.4e38, "float16": 65504.0, "bfloat16": 3.38e38}


def epsilon(dtype: str) -> float:
    """Returns the largest relative error of rounding to a floating type, half its last bit."""
    return float(2.0 ** -(_MANTISSA[dtype] + 1))


@dataclass(frozen=True)
class RoundingError:
    """The rounding error of the values of an output.

    Attributes:
        by_axis: For every axis of neighbourhoods, how far their values may be off for that alone,
            (samples, size): an absolute error; one column where the sample, or all samples, are the
            neighbourhood.
        share: How far a value that belongs to no neighbourhood may be off, as a share of itself,
            (samples,).
        fills: The same of a fill that is a finite number and not the end of a type.
    """

    by_axis: tuple[Floats, ...]
    share: Floats
    fills: Floats

    def larger(self, other: RoundingError) -> RoundingError:
        """Returns the larger of two for every neighbourhood."""
        pairs = zip(self.by_axis, other.by_axis, strict=True)
        return RoundingError(
            tuple(np.maximum(one, two) for one, two in pairs),
            np.maximum(self.share, other.share),
            np.maximum(self.fills, other.fills),
        )

    def times(self, factor: float) -> RoundingError:
        """Returns a multiple of the error of every neighbourhood."""
        by_axis = tuple(one * factor for one in self.by_axis)
        return RoundingError(by_axis, self.share * factor, self.fills * factor)

    def of(self, rows: NDArray[Any]) -> RoundingError:
        """Returns that of some samples."""
        by_axis = tuple(one[rows] for one in self.by_axis)
        return RoundingError(by_axis, self.share[rows], self.fills[rows])


class Neighbourhoods:
    """The neighbourhoods of the values of one floating output, and their scales.

    Args:
        reference: What is right, (samples, …).
        scale: The scale of every sample's neighbourhood (samples,), for samples of one number of
            which these are only some; None computes it.

    Attributes:
        axes: The axes that a neighbourhood is one index of; empty where it is the whole sample, or
            all samples where each has one number.
        fills: Which values are fills.
    """

    def __init__(self, reference: NDArray[Any], scale: Floats | None = None) -> None:
        self._values = np.abs(reference.astype(np.float64))
        self._scale = scale
        self.axes = axes_of(reference.shape)
        self.fills = fills(reference)

    @property
    def is_one_number(self) -> bool:
        """Whether a sample has too few values, so that all samples are one neighbourhood."""
        return math.prod(self._values.shape[1:]) < FEWEST

    @cached_property
    def scales(self) -> tuple[Floats, ...]:
        """The scale of every neighbourhood, (samples, size) for each axis; else (samples, 1)."""
        if self.is_one_number and self._scale is not None:
            return (self._scale.reshape(-1, 1),)
        return tuple(scale for scale, _ in self._both_scales)

    @property
    def _of_zero(self) -> tuple[Floats, ...]:
        """The scales of zeros, in place of ``scales``."""
        if self.is_one_number and self._scale is not None:
            return self.scales
        return tuple(scale for _, scale in self._both_scales)

    @cached_property
    def _both_scales(self) -> tuple[tuple[Floats, Floats], ...]:
        """The scales of values that are not zero, and those of zeros."""
        samples = len(self._values)
        known = np.where(self.fills, np.inf, self._values)
        if self.is_one_number:
            one, other = scales_of(known.reshape(1, -1))
            return ((np.full((samples, 1), one[0]), np.full((samples, 1), other[0])),)
        found = []
        for position in range(max(len(self.axes), 1)):
            moved = self._gathered(known, position)
            size, values = moved.shape[1:]
            one, other = scales_of(moved.reshape(samples * size, values))
            found.append((one.reshape(samples, size), other.reshape(samples, size)))
        return tuple(found)

    def belongs(self, position: int) -> Flags:
        """Returns which values belong to their neighbourhood along one of the axes."""
        own = self._spread(self.scales[position], position)
        inside: Flags = (self._values <= LOUD * own) & ~self.fills
        for other, scales in enumerate(self.scales):
            if other != position and not self.is_one_number:
                ordinary = _APART * median_of(scales)[:, None]
                loud = self._spread(np.where(scales > ordinary, scales, 0.0), other)
                inside &= loud <= _APART * own
        return inside

    def members(self, position: int) -> Floats:
        """Returns the magnitudes in each neighbourhood along an axis, (samples, size, …).

        It is 0 where a value does not belong to it.
        """
        found: Floats = self._gathered(
            np.where(self.belongs(position), self._values, 0.0), position
        )
        return found

    @cached_property
    def alone(self) -> Flags:
        """Which values belong to no neighbourhood, and are no fills."""
        some = [self.belongs(position) for position in range(len(self.scales))]
        found: Flags = ~self.fills & ~np.logical_or.reduce(some)
        return found

    @cached_property
    def computed_fills(self) -> Flags:
        """Which fills are numbers that a model may have computed, and not the end of a type."""
        found: Flags = self.fills & np.isfinite(self._values) & ~np.isin(self._values, ENDS)
        return found

    def rounding_error(self, difference: NDArray[Any]) -> RoundingError:
        """Returns the largest of some differences in every neighbourhood.

        Args:
            difference: Absolute differences that rounding explains, (samples, …).
        """
        by_axis = []
        for position in range(len(self.scales)):
            inside = self.belongs(position)
            part = self._gathered(np.where(inside, difference, 0.0), position)
            by_axis.append(part.max(axis=-1, initial=0.0))
        if self.is_one_number:
            by_axis = [np.full(by_axis[0].shape, by_axis[0].max(initial=0.0))]
        with np.errstate(divide="ignore", invalid="ignore"):
            own = difference / self._values
        inner = tuple(range(1, own.ndim))
        share, filled = (
            np.where(where, own, 0.0).max(axis=inner, initial=0.0)
            for where in (self.alone, self.computed_fills)
        )
        return RoundingError(tuple(by_axis), share, filled)

    def allowed(
        self, rounding_error: RoundingError, floor: float, computed_in: str = "float32"
    ) -> Floats:
        """Returns how far every value may be off, (samples, …); 0 for an infinite one.

        Args:
            rounding_error: The rounding error.
            floor: The share of a scale that is always allowed.
            computed_in: The precision that is computed in, which fills are held to.
        """
        least = np.full(self._values.shape, np.inf)
        zero = self._values == 0
        for position, (scale, of_zero) in enumerate(zip(self.scales, self._of_zero, strict=True)):
            of_rounding = self._spread(rounding_error.by_axis[position], position)
            held = np.where(zero, self._spread(of_zero, position), self._spread(scale, position))
            own = np.maximum(floor * held, of_rounding)
            np.minimum(least, np.where(self.belongs(position), own, np.inf), out=least)
        values = np.where(np.isfinite(self._values), self._values, 0.0)
        alone = self._spread(np.maximum(rounding_error.share, floor)[:, None], None) * values
        least = np.where(self.alone, alone, np.maximum(least, floor * values))
        filled = np.where(
            self.computed_fills, self._spread(rounding_error.fills[:, None], None), 0.0
        )
        least = np.where(self.fills, np.maximum(4 * epsilon(computed_in), filled) * values, least)
        found: Floats = np.maximum(least, np.finfo(np.float32).tiny)
        return found

    def share_of_scale(self, rounding_error: RoundingError) -> tuple[Floats, ...]:
        """Returns the rounding error as a share of every neighbourhood's own scale."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return tuple(
                np.where((one > 0) & (scale > 0), one / scale, 0.0)
                for one, scale in zip(rounding_error.by_axis, self.scales, strict=True)
            )

    def _gathered(self, values: NDArray[Any], position: int) -> NDArray[Any]:
        """Brings the values of each neighbourhood along an axis together, (samples, size, …)."""
        if not self.axes or self.is_one_number:
            return values.reshape(len(values), 1, math.prod(values.shape[1:]))
        moved = np.moveaxis(values, self.axes[position], 1)
        return moved.reshape(*moved.shape[:2], math.prod(moved.shape[2:]))

    def _spread(self, numbers: Floats, position: int | None) -> Floats:
        """Brings numbers (samples, size) of an axis, or (samples, 1), beside the values."""
        ndim = self._values.ndim
        if position is None or not self.axes or self.is_one_number:
            return numbers.reshape(len(numbers), *[1] * (ndim - 1))
        shape = [1] * ndim
        shape[0], shape[self.axes[position]] = numbers.shape
        return numbers.reshape(shape)


def limits(
    outputs: NDArray[Any],
    rounding_error: RoundingError,
    floor: float,
    computed_in: str,
    samples: int,
    scale: Floats | None,
    columns: Floats | None = None,
) -> Floats:
    """Returns how far every value of an output (batches, …) may be off, up to float32's maximum.

    Args:
        outputs: The output.
        rounding_error: The rounding error of all its samples.
        floor: The share of a scale that is always allowed.
        computed_in: The precision that is computed in, which fills are held to.
        samples: How many samples a batch has.
        scale: The scale that samples of one number have; None takes it from these.
        columns: How far each value of all samples may be off for its column, beside a share of
            itself; None where it is not known.
    """
    flat = as_samples(outputs, samples)
    around = Neighbourhoods(flat, scale)
    allowed = around.allowed(rounding_error, floor, computed_in)
    if columns is not None:
        own = np.maximum(columns.reshape(flat.shape), floor * np.abs(flat))
        least = np.where(around.alone | around.is_one_number, own, np.minimum(allowed, own))
        allowed = np.where(around.fills, allowed, least)
    allowed = np.clip(allowed, np.finfo(np.float32).tiny, np.finfo(np.float32).max)
    return allowed.astype(np.float32).reshape(outputs.shape)


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
    """Returns the value that uses most of its tolerance; None without values.

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
    """Returns whether every value is off by no more than a share of its neighbourhood's scale.

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
    return around.allowed(around.rounding_error(np.zeros(flat.shape)), floor).reshape(
        reference.shape
    )


def differences(
    reference: NDArray[Any], candidate: NDArray[Any], allowed: Floats | None = None
) -> Floats:
    """Returns the absolute differences; infinite where one side has no number to compare.

    Equal infinities are no distance apart. A fill that leaves the range of a half type comes back
    as an infinity or as the largest number of that type: where ``allowed`` permits that, it counts
    as equal.
    """
    wide, other = reference.astype(np.float64), candidate.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(other - wide)
    error = np.where(wide == other, 0.0, np.nan_to_num(error, nan=np.inf, posinf=np.inf))
    if allowed is not None:
        error = np.where(_is_saturated(wide, other, allowed), 0.0, error)
    return error


def _is_saturated(wide: Floats, other: Floats, allowed: Floats) -> Flags:
    """Returns which values are fills beyond a half type's range that came back as its largest."""
    found = np.zeros(wide.shape, bool)
    size = np.abs(wide)
    for dtype in ("float16", "bfloat16"):
        end = LARGEST[dtype]
        held = np.isclose(allowed, 4 * epsilon(dtype) * size, rtol=1e-3, atol=0.0)
        ends = np.isinf(other) | (np.abs(other) >= end * (1 - epsilon(dtype)))
        found |= held & (size > end) & ends & (np.sign(wide) == np.sign(other))
    return found


def axes_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes along which one index makes a neighbourhood."""
    inner = [axis for axis in range(1, len(shape)) if shape[axis] > 1]
    values = math.prod(shape[1:])
    if len(inner) < 2:
        return ()
    return tuple(axis for axis in inner if values // shape[axis] >= FEWEST)
