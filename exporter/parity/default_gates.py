"""Sets the gate of every output, from its type, the precision and the user's options.

In int8 a channel of an output is held to a share of its own spread, whatever the others do: boxes
in pixels hide no scores beside them. One that varies little is off by what int8 makes of the
numbers that it is computed from, however little that has to do with its spread; so that is measured
on the traced graph (``quantised_run``) and allowed as well. With o the spread of a channel and q
what int8 does to it, both roots of mean squares over n values, its error may be

    (1 + 1 / √n) · max(0.7 · o, 3 · q)

ViTs come to 0.05 … 0.18 of the first on images and on noise, and to 0.6 … 1.7 of q.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from tokexport.exporter.parity.gates import (
    FP32_FLOOR,
    HALF_FACTOR,
    HALF_TYPES,
    LEAST_COSINE,
    REDUCED_PRECISION_TOLERANCE,
    SPREAD_TOLERANCE,
    UNSTABLE,
    Gate,
)
from tokexport.exporter.rounding.local_rounding import ROUNDING_FACTOR
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.comparison import Channels, along_axes, compare, scale_of, spread
from tokexport.runtimes.tolerances.neighbourhoods import as_samples, limits
from tokexport.runtimes.tolerances.scales import fills

if TYPE_CHECKING:
    from tokexport.exporter.rounding.local_rounding import LocalRounding


#: The share of its own spread that a channel may be off.
CHANNEL_TOLERANCE: Final = 0.7
#: The tolerance as a multiple of the error of int8.
_EXPLAINED: Final = 3.0
#: The same multiple of its largest error of one value, for a largest entry that moves.
_TOP1: Final = 2.0
#: The least tolerance, as a share of the size of a channel.
_FLOOR: Final = 1e-5
#: The weight of the ordinary channel, in values, where a channel has few values of its own.
_PRIOR: Final = 8
#: The least spread of a channel, as a share of that of all its values, where decisions move them.
_MOVED: Final = 0.5
#: The fewest values from which the spread of a channel is estimated.
_FEWEST: Final = 8


def channels_of(expected: Array, explained: Array, decides: bool) -> tuple[Channels, str]:
    """Returns how far each channel may be off, and a clause on those that int8 hides, or ''.

    Args:
        expected: What the model answers, (samples, …).
        explained: What the precision does to it, absolute differences (some samples, …).
        decides: Whether the model decides, so that int8 moves values from place to place.
    """
    kept = ~fills(expected)
    wide = np.where(kept, expected.astype(np.float64), 0.0)
    own, size = _spreads(wide, kept, decides), along_axes(wide, kept)
    measured = along_axes(explained, np.ones(explained.shape, bool))
    allowed, hidden = {}, []
    for axis, varies in own.items():
        rms, count = measured[axis]
        most = _EXPLAINED * _steadied(rms, count)
        allowed[axis] = np.maximum.reduce(
            (CHANNEL_TOLERANCE * varies, most, _FLOOR * size[axis][0])
        )
        lost = int(np.count_nonzero((most > varies) & (varies > 0)))
        if lost:
            hidden.append(f"{lost} of {len(varies)} indices of axis {axis}")
    inner = tuple(range(explained.ndim - 1))
    top1 = _TOP1 * explained.max(axis=inner, initial=0.0) if explained.ndim > 1 else np.zeros(1)
    return Channels(allowed, top1), "; ".join(hidden)


def _spreads(wide: Array, kept: Array, decides: bool) -> dict[int, Array]:
    """Returns how much each index along an axis varies between samples, by axis."""
    counts = np.maximum(kept.sum(axis=0, keepdims=True), 1)
    apart = np.where(kept, wide - wide.sum(axis=0, keepdims=True) / counts, 0.0)
    found = {axis: rms for axis, (rms, _) in along_axes(apart, kept).items()}
    if decides:
        for axis in found:
            others = tuple(each for each in range(wide.ndim) if each != axis)
            count = np.maximum(kept.sum(axis=others, keepdims=True), 1)
            about = np.where(kept, wide - wide.sum(axis=others, keepdims=True) / count, 0.0)
            found[axis] = np.maximum(found[axis], _MOVED * along_axes(about, kept)[axis][0])
    return found


def _steadied(rms: Array, count: Array) -> Array:
    """Returns root mean squares of few values drawn towards that of the ordinary channel."""
    if not rms.size:
        return rms
    ordinary = np.square(np.median(rms))
    steadied: Array = np.sqrt((count * np.square(rms) + _PRIOR * ordinary) / (count + _PRIOR))
    return np.where(count < 2 * _PRIOR, np.maximum(rms, steadied), rms)


def set_gates(
    outputs: Mapping[str, Array],
    rounding: Mapping[str, LocalRounding],
    precision: str,
    atol: float | None,
    *,
    batch: int = 1,
) -> dict[str, Gate]:
    """Returns the gate of every output.

    Args:
        outputs: What the model answered, (batches, …) by name.
        rounding: What rounding does to the floating ones.
        precision: The precision that is judged.
        atol: An absolute tolerance that the user asked for; it replaces the default of floating
            outputs. Whole numbers and booleans must be equal.
        batch: How many samples a batch has: the leading axis of outputs that have one of that size.
    """
    gates = {}
    for name, expected in outputs.items():
        scale = scale_of(expected)
        if expected.dtype.kind in "iub":
            gate = Gate(0.0, None, scale, "whole numbers are equal or they are not")
        elif precision == "int8" and atol is None:
            least = FP32_FLOOR * scale
            own = rounding[name]
            gate = _over_all_samples(expected, own.error(scale), scale, least, batch)
            if own.int8 is not None:
                channels, hidden = channels_of(as_samples(expected, batch), own.int8, own.decides)
                gate = replace(gate, channels=channels, hidden=hidden)
        else:
            gate = _local_gate(expected, scale, rounding[name], precision)
            if atol is not None:
                gate = _absolute(gate, rounding[name], atol)
        gates[name] = gate
    return gates


def _local_gate(expected: Array, scale: float, rounding: LocalRounding, precision: str) -> Gate:
    """Returns the gate that holds every value to its own neighbourhoods."""
    half = HALF_TYPES.get(precision)
    floor = FP32_FLOOR if half is None else REDUCED_PRECISION_TOLERANCE[precision]
    rounding_error = rounding.rounding_error.times(ROUNDING_FACTOR)
    reason = f"{floor:g} of the scale of its neighbourhood, or 4 × what rounding does there"
    if half is not None and rounding.half is not None:
        rounding_error = rounding_error.larger(rounding.half.times(HALF_FACTOR))
        reason = f"{floor:g} of the scale of its neighbourhood, or 2 × what {precision} does there"
    if rounding.times_few > 1:
        reason += (
            f", and up to {rounding.times_few:.2g} times that where it is estimated from few values"
        )
    if rounding.why_not:
        reason += f"; no float64 run, {rounding.why_not}"
    computed_in, scale_of_numbers = half or "float32", rounding.scale_of_numbers(expected)
    samples, columns = rounding.samples, None
    if rounding.columns is not None:
        columns = rounding.columns.limits(floor, ROUNDING_FACTOR)
        if half is not None and rounding.half_columns is not None:
            columns = np.maximum(columns, rounding.half_columns.limits(floor, HALF_FACTOR))
    return Gate(
        floor,
        rounding.error(scale),
        scale,
        reason,
        moves=rounding.typical if half is None else rounding.typical_half,
        unstable=rounding.unstable(UNSTABLE) if half is None else "",
        allowed=limits(
            expected, rounding_error, floor, computed_in, samples, scale_of_numbers, columns
        ),
        rounding_error=rounding_error,
        computed_in=computed_in,
        scale_of_numbers=scale_of_numbers,
        columns=columns,
        samples=samples,
    )


def _absolute(gate: Gate, rounding: LocalRounding, atol: float) -> Gate:
    """Returns a gate of the absolute tolerance that a user asked for."""
    least, reason = rounding.largest, f"--atol {atol:g}"
    if atol < least:
        reason += f", which float32 cannot meet: rounding alone moves it by {least:.1e}"
    return replace(
        gate,
        tolerance=atol / (gate.scale or 1.0),
        reason=reason,
        unmeetable=atol < least,
        moves=0.0,
        allowed=None,
        explained=gate.allowed,
        top1_tolerance=gate.tolerance,
    )


def over_all_gates(
    gates: Mapping[str, Gate], outputs: Mapping[str, Array], batch: int
) -> dict[str, Gate]:
    """Replaces gates of each sample by gates over all samples; those of integers stay.

    Args:
        gates: The gate of every output.
        outputs: What the model answered, (batches, …) by name.
        batch: How many samples a batch has.
    """
    found = {}
    for name, gate in gates.items():
        if outputs[name].dtype.kind not in "iub":
            rounding_error = gate.scale * max(
                FP32_FLOOR, ROUNDING_FACTOR * (gate.eager_error or 0.0)
            )
            over_all = _over_all_samples(
                outputs[name], gate.eager_error, gate.scale, rounding_error, batch
            )
            reason = f"every sample crosses a near-tie; {over_all.reason}"
            channels = None
            if gate.allowed is not None:
                flat, moved = (as_samples(each, batch) for each in (outputs[name], gate.allowed))
                channels, _ = channels_of(flat, moved, decides=True)
            gate = replace(over_all, reason=reason, advice=gate.advice, channels=channels)
        found[name] = gate
    return found


def _over_all_samples(
    expected: Array, error: float | None, scale: float, rounding_error: float, batch: int
) -> Gate:
    """Returns the gate over all samples together for an output (batches, …).

    Where the samples do not differ by more than rounding, or there is but one, the spread is that
    between the output's own values; where those do not differ either, it is their size.
    """
    per_sample = expected.ndim > 1 and expected.shape[1] == batch
    finite = expected[np.isfinite(expected)]
    between = spread(expected, 2 if per_sample else 1), spread(finite, 1)
    size = compare(finite, np.zeros_like(finite)).rms
    found = next((each for each in between if each > rounding_error), size)
    return Gate(
        math.inf,
        error,
        scale,
        f"the default over all samples: a cosine of {LEAST_COSINE:g} or more, and an "
        f"error of {SPREAD_TOLERANCE:g} of the spread between samples or less",
        least_cosine=LEAST_COSINE,
        spread=found,
        varies=between[0] > rounding_error,
        spread_tolerance=SPREAD_TOLERANCE,
        samples=batch,
    )
