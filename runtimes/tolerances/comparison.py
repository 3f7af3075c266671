"""Measures how far an output is from its reference: the arithmetic behind every gate.

With d = |candidate - reference| and s = max |reference| over its values that are no fills:

    max_abs  = max d        mean_abs = mean d        relative = max_abs / s  (max_abs where s = 0)
    rms      = √ mean d²    cosine   = <reference, candidate> / (|reference| |candidate|)

An error of int8 is compared with the spread, which is how much the reference itself varies::

    spread   = √ mean |reference - its mean over the samples|²

One output for every input has an rms of at least one spread, however near its cosine is to 1.

Everything is computed in float64. Outputs of whole numbers or booleans are decisions, not
measurements: their ``relative`` is the fraction of elements that differ, so only a tolerance of 0
accepts equality alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokexport.runtimes.tolerances.scales import fills

_EXACT_KINDS = "iub"
_KINDS = _EXACT_KINDS + "f"


@dataclass(frozen=True)
class Comparison:
    """The distance of one output from its reference.

    Attributes:
        max_abs: Largest absolute difference; infinite where one side has a value that the other
            side cannot be compared with (a NaN, an infinity that the other does not share).
        mean_abs: Mean absolute difference; infinite in the same cases.
        cosine: Cosine similarity of the flattened outputs, from -1 to 1. Two zero outputs are
            alike (1), one zero output is unlike any other (0), and so is an output that cannot
            be compared (0). What is a fill on both sides is left out of it.
        top1_agreement: Fraction of rows (along the last axis) whose largest entry stands at the
            same place; None for outputs of one class or of whole numbers.
        scale: Largest magnitude of the reference, fills left out; 1 for whole numbers and booleans.
        relative: ``max_abs`` over ``scale``; the fraction of differing elements for whole numbers
            and booleans.
        rms: Root of the mean squared difference; infinite in the cases of ``max_abs``.
    """

    max_abs: float
    mean_abs: float
    cosine: float
    top1_agreement: float | None
    scale: float
    relative: float
    rms: float


def compare(reference: NDArray[Any], candidate: NDArray[Any]) -> Comparison:
    """Measures how far ``candidate`` is from ``reference``.

    Equal infinities agree. A NaN agrees with nothing, not even with another NaN: nothing can be
    proven about that output.

    Args:
        reference: The expected values, any shape, of a real dtype.
        candidate: What is measured, of the same shape; of any floating dtype where the reference
            is floating, of any dtype of whole numbers or booleans where it is one of those.

    Raises:
        ValueError: The shapes differ, or one is floating and the other is not, or a dtype is
            neither real nor boolean.
    """
    reference, candidate = np.asarray(reference), np.asarray(candidate)
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {candidate.shape}")
    kinds = reference.dtype.kind, candidate.dtype.kind
    if any(kind not in _KINDS for kind in kinds) or len({k in _EXACT_KINDS for k in kinds}) > 1:
        raise ValueError(f"dtypes cannot be compared: {reference.dtype} and {candidate.dtype}")
    # The arithmetic may overflow on the largest doubles; an infinite error is then the answer.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if kinds[0] in _EXACT_KINDS:
            return _compare_exact(reference, candidate)
        return _compare_floating(reference, candidate)


def _compare_exact(reference: NDArray[Any], candidate: NDArray[Any]) -> Comparison:
    differing = float(np.mean(reference != candidate)) if reference.size else 0.0
    wide_reference = reference.astype(np.float64)
    wide_candidate = candidate.astype(np.float64)
    difference = np.abs(wide_candidate - wide_reference)
    return Comparison(
        max_abs=float(difference.max(initial=0.0)),
        mean_abs=float(difference.mean()) if difference.size else 0.0,
        cosine=1.0 if differing == 0.0 else _cosine(wide_reference, wide_candidate),
        top1_agreement=None,
        scale=1.0,
        relative=differing,
        rms=_rms(difference),
    )


def _compare_floating(reference: NDArray[Any], candidate: NDArray[Any]) -> Comparison:
    reference, candidate = reference.astype(np.float64), candidate.astype(np.float64)
    finite = np.isfinite(reference) & np.isfinite(candidate)
    # Infinities are equal or not; NaN == NaN is false, which is what is wanted.
    comparable = finite | (reference == candidate)
    difference = np.where(finite, np.abs(candidate - reference), np.where(comparable, 0.0, np.inf))
    max_abs = float(difference.max(initial=0.0))
    filled = fills(reference) if reference.ndim else ~np.isfinite(reference)
    scale = _scale(reference, filled)
    if reference.ndim:
        finite &= ~(filled & fills(candidate))
    return Comparison(
        max_abs=max_abs,
        mean_abs=_mean(difference, max_abs),
        cosine=_cosine(reference[finite], candidate[finite]) if comparable.all() else 0.0,
        top1_agreement=_top1_agreement(reference, candidate),
        scale=scale,
        relative=relative_error(max_abs, scale),
        rms=_rms(difference),
    )


def scale_of(reference: NDArray[Any]) -> float:
    """Returns the ``scale`` that a comparison with a reference has."""
    if reference.dtype.kind in _EXACT_KINDS:
        return 1.0
    return _scale(reference, fills(reference) if reference.ndim else ~np.isfinite(reference))


def _scale(reference: NDArray[Any], filled: NDArray[np.bool_]) -> float:
    return float(np.abs(reference[~filled]).max(initial=0.0))


def spread(reference: NDArray[Any], samples: int) -> float:
    """Returns how much a floating output varies between samples; fills are left out.

    Args:
        reference: The output, (samples, …), or (batches, samples, …).
        samples: Over how many of the leading axes the samples run.
    """
    wide = reference.astype(np.float64)
    flat = wide.reshape(-1, *wide.shape[samples:])
    finite = ~fills(flat).reshape(wide.shape)
    axes = tuple(range(samples))
    largest = float(np.abs(wide[finite]).max(initial=0.0)) or 1.0
    scaled = np.where(finite, wide / largest, 0.0)  # the sums of the largest doubles leave float64
    counts = np.maximum(finite.sum(axis=axes, keepdims=True), 1)
    mean = scaled.sum(axis=axes, keepdims=True) / counts
    return _rms((scaled - mean)[finite]) * largest


#: How many root mean squared errors a moved largest entry may be off, where int8 moves decisions
#: too and the simulation is less exact.
_TOP1_ERRORS = 3.0


@dataclass(frozen=True)
class Channels:
    """The tolerance of each index along each axis of a floating output, over all samples.

    Attributes:
        allowed: The root mean squared error of each index, by axis of (samples, …); that of few
            values may be more, by their number.
        top1: How far each index of the last axis may be off at least for a largest entry to change
            its place.
    """

    allowed: Mapping[int, NDArray[np.floating[Any]]]
    top1: NDArray[np.floating[Any]]

    def failure(self, reference: NDArray[Any], candidate: NDArray[Any]) -> str:
        """Returns which channel or largest entry fails behind figures of all samples, or ''.

        Args:
            reference: What is right, (samples, …).
            candidate: What is measured, of that shape.
        """
        kept = ~fills(reference)
        with np.errstate(invalid="ignore", over="ignore"):
            error = candidate.astype(np.float64) - reference.astype(np.float64)
        error = np.where(kept, error, 0.0)
        for axis, (rms, count) in along_axes(error, kept).items():
            most = self.allowed[axis] * (1 + 1 / np.sqrt(np.maximum(count, 1)))
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.where(rms == 0, 0.0, rms / most)
            place = int(np.argmax(share))
            if not share[place] <= 1:
                return (
                    f"is off by {rms[place]:.2e} at index {place} of axis {axis}, and "
                    f"{most[place]:.2e} is allowed over all samples there"
                )
        whole = _rms(error)
        last = self.allowed.get(reference.ndim - 1)
        if last is None or not math.isfinite(whole):
            return ""
        near = np.maximum(np.minimum(_TOP1_ERRORS * whole, last), self.top1)
        return unexplained_top1(reference, candidate, np.broadcast_to(near, reference.shape))


def along_axes(
    values: NDArray[Any], kept: NDArray[np.bool_]
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Returns the root mean square and the number of values at each index, by axis.

    Args:
        values: (samples, …); 0 where they are not kept.
        kept: Which count.
    """
    found = {}
    for axis in range(1, values.ndim):
        if values.shape[axis] > 1:
            others = tuple(each for each in range(values.ndim) if each != axis)
            count = kept.sum(axis=others)
            largest = np.abs(values).max(axis=others, initial=0.0, keepdims=True)
            with np.errstate(divide="ignore", invalid="ignore"):
                scaled = np.where(largest > 0, values / largest, 0.0)
            mean = np.square(scaled).sum(axis=others) / np.maximum(count, 1)
            found[axis] = np.sqrt(mean) * largest.reshape(-1), count
    return found


def unexplained_top1(
    reference: NDArray[Any], candidate: NDArray[Any], explained: NDArray[Any]
) -> str:
    """Returns which row has its largest entry elsewhere without a near-tie; '' for none.

    Args:
        reference: What is right, (…, classes).
        candidate: What is measured, of that shape.
        explained: How far each entry may be off; two entries may change places where the reference
            has them no farther apart than both may be off.
    """
    if reference.ndim == 0 or reference.shape[-1] < 2 or not reference.size:
        return ""
    classes = reference.shape[-1]
    one, other = (each.reshape(-1, classes).astype(np.float64) for each in (reference, candidate))
    near = explained.reshape(-1, classes)
    rows = np.arange(len(one))
    first, second = one.argmax(axis=1), other.argmax(axis=1)
    with np.errstate(invalid="ignore"):
        margin = one[rows, first] - one[rows, second]
    margin = np.where(first == second, 0.0, margin)
    beyond = ~(margin <= near[rows, first].astype(np.float64) + near[rows, second])
    if not beyond.any():
        return ""
    row = int(np.argmax(np.where(beyond, margin, -np.inf)))
    return (
        f"has its largest entry at {second[row]} in place of {first[row]} in row {row}, which are "
        f"{margin[row]:.2e} apart, no near-tie"
    )


def relative_error(max_abs: float, scale: float) -> float:
    """``max_abs`` over ``scale``, or ``max_abs`` itself where the scale is 0."""
    if scale == 0.0 or math.isinf(max_abs):
        return max_abs
    return max_abs / scale


def _mean(difference: NDArray[np.float64], largest: float) -> float:
    """The mean, without overflow on the way: no element is above ``largest``."""
    if difference.size == 0 or largest == 0.0 or math.isinf(largest):
        return largest
    return min(float((difference / largest).mean()) * largest, largest)


def _rms(difference: NDArray[np.float64]) -> float:
    """The root of the mean square, scaled to 1 first as squares leave float64."""
    largest = float(np.abs(difference).max(initial=0.0))
    if largest == 0.0 or math.isinf(largest):
        return largest
    return min(math.sqrt(float(np.square(difference / largest).mean())), 1.0) * largest


def _cosine(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    largest_reference = float(np.abs(reference).max(initial=0.0))
    largest_candidate = float(np.abs(candidate).max(initial=0.0))
    if largest_reference == 0.0 or largest_candidate == 0.0:
        return 1.0 if largest_reference == largest_candidate else 0.0
    # Scaled to 1 first: the squares of very large or very small numbers leave float64.
    a = (reference / largest_reference).ravel()
    b = (candidate / largest_candidate).ravel()
    cosine = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
    return min(1.0, max(-1.0, cosine))


def _top1_agreement(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float | None:
    if reference.ndim == 0 or reference.shape[-1] < 2 or reference.size == 0:
        return None
    agrees = reference.argmax(axis=-1) == candidate.argmax(axis=-1)
    ordered = ~(np.isnan(reference).any(axis=-1) | np.isnan(candidate).any(axis=-1))
    return float(np.mean(agrees & ordered))
