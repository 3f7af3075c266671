"""Sets the gate of every output, by what it is, the precision, and what a person asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tokexport.exporter.parity.channel_gates import channels_of
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
from tokexport.runtimes.tolerances.comparison import compare, scale_of, spread
from tokexport.runtimes.tolerances.neighbourhoods import as_samples, limits

if TYPE_CHECKING:
    from tokexport.exporter.rounding.local_rounding import LocalRounding


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
        atol: An absolute tolerance that the person asked for; it replaces the default of floating
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
    noise = rounding.noise.times(ROUNDING_FACTOR)
    reason = f"{floor:g} of the scale of its neighbourhood, or 4 × what rounding does there"
    if half is not None and rounding.half is not None:
        noise = noise.larger(rounding.half.times(HALF_FACTOR))
        reason = f"{floor:g} of the scale of its neighbourhood, or 2 × what {precision} does there"
    if rounding.times_few > 1:
        reason += f", and up to {rounding.times_few:.2g} times that where few values tell it"
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
        allowed=limits(expected, noise, floor, computed_in, samples, scale_of_numbers, columns),
        noise=noise,
        computed_in=computed_in,
        scale_of_numbers=scale_of_numbers,
        columns=columns,
        samples=samples,
    )


def _absolute(gate: Gate, rounding: LocalRounding, atol: float) -> Gate:
    """Returns a gate of the absolute tolerance that a person asked for."""
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
    """Returns gates over all samples together in place of gates of each; those of integers stay.

    Args:
        gates: The gate of every output.
        outputs: What the model answered, (batches, …) by name.
        batch: How many samples a batch has.
    """
    found = {}
    for name, gate in gates.items():
        if outputs[name].dtype.kind not in "iub":
            noise = gate.scale * max(FP32_FLOOR, ROUNDING_FACTOR * (gate.eager_error or 0.0))
            over_all = _over_all_samples(outputs[name], gate.eager_error, gate.scale, noise, batch)
            reason = f"every sample holds a near-tie that fell the other way; {over_all.reason}"
            channels = None
            if gate.allowed is not None:
                flat, moved = (as_samples(each, batch) for each in (outputs[name], gate.allowed))
                channels, _ = channels_of(flat, moved, decides=True)
            gate = replace(over_all, reason=reason, advice=gate.advice, channels=channels)
        found[name] = gate
    return found


def _over_all_samples(
    expected: Array, error: float | None, scale: float, noise: float, batch: int
) -> Gate:
    """Returns the gate over all samples together for an output (batches, …).

    Where the samples do not differ by more than rounding, or there is but one, the spread is that
    between the output's own values; where those do not differ either, it is their size.
    """
    per_sample = expected.ndim > 1 and expected.shape[1] == batch
    finite = expected[np.isfinite(expected)]
    between = spread(expected, 2 if per_sample else 1), spread(finite, 1)
    size = compare(finite, np.zeros_like(finite)).rms
    found = next((each for each in between if each > noise), size)
    return Gate(
        math.inf,
        error,
        scale,
        f"the default over all samples: a cosine of {LEAST_COSINE:g} or more, and an "
        f"error of {SPREAD_TOLERANCE:g} of the spread between samples or less",
        least_cosine=LEAST_COSINE,
        spread=found,
        varies=between[0] > noise,
        spread_tolerance=SPREAD_TOLERANCE,
        samples=batch,
    )
