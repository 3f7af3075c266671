"""Judges an artifact in int8 at the edges, where its values cannot be compared one by one.

The stages before it, in fp32, are compared there value by value. int8 may lose everything there:
the ranges were measured on other inputs, and do not reach the values of these. So the artifact has
to be finite wherever eager is, and on inputs of ordinary size nearer to eager than one output for
all inputs would be. The report says how far off it is on every kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tokexport.exporter.edges.edge_inputs import EXTREME
from tokexport.exporter.parity.gates import FP32_FLOOR, SPREAD_TOLERANCE
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.comparison import compare, scale_of, spread
from tokexport.runtimes.tolerances.neighbourhoods import as_samples

#: One answer for all inputs is off by this many spreads at least.
_BLIND: Final = 1.0


@dataclass(frozen=True)
class Int8Figures:
    """The error of one output in int8 at the edges.

    Attributes:
        error: The root of the mean squared difference on inputs of ordinary size, as a share of the
            spread between samples or kinds; None where that is not asked.
        not_asked: Why not, a clause; '' where it is.
        outside: The kinds on which it is off by more than the gate of the samples allows, as a
            share of that spread or of its size there, whichever is more.
        failure: Why it does not pass, a clause; '' where it does.
    """

    error: float | None = None
    not_asked: str = ""
    outside: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


def int8_figures(
    wanted: Array, found: Array, samples: Array, kinds: Sequence[str], batch: int
) -> Int8Figures:
    """Compares an output of an artifact in int8 with eager's at the edges.

    Args:
        wanted: What eager answers, (kinds, …).
        found: What the artifact does.
        samples: What eager answers to the samples, (batches, …).
        kinds: The kinds of inputs.
        batch: How many samples a batch has.
    """
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return Int8Figures(failure=f"is {found.dtype} {found.shape[1:]} there")
    if wanted.dtype.kind != "f":
        apart = {kind: _share(wanted[row] != found[row]) for row, kind in enumerate(kinds)}
        outside = {kind: share for kind, share in apart.items() if share > 0}
        return Int8Figures(not_asked="is of whole numbers", outside=outside)
    for row, kind in enumerate(kinds):
        lost = np.isfinite(wanted[row]) & ~np.isfinite(found[row])
        if lost.any():
            value = found[row][lost].flat[0]
            return Int8Figures(failure=f"holds {value} on {kind}, where eager is finite")
    ordinary = [row for row, kind in enumerate(kinds) if kind not in EXTREME]
    around = [_spread(part, batch) for part in (samples, wanted[ordinary]) if len(part)]
    varies = max(around, default=0.0)
    if not varies > FP32_FLOOR * scale_of(samples):
        return Int8Figures(not_asked="does not vary between the samples or there")
    outside = {}
    for row, kind in enumerate(kinds):
        size = max(varies, compare(wanted[row], np.zeros_like(wanted[row])).rms)
        share = compare(wanted[row], found[row]).rms / size
        if not share <= SPREAD_TOLERANCE:
            outside[kind] = share
    if not ordinary:
        return Int8Figures(not_asked="has no inputs of ordinary size there", outside=outside)
    error = compare(wanted[ordinary], found[ordinary]).rms / varies
    failure = ""
    if not error < _BLIND:
        said = f"is off by {error:.2f} of its spread on inputs of ordinary size"
        failure = f"{said}, as one answer for all would be"
    return Int8Figures(error, outside=outside, failure=failure)


def _share(differing: Array) -> float:
    return float(np.mean(differing)) if differing.size else 0.0


def _spread(output: Array, batch: int) -> float:
    """Returns how much an output (batches, …) varies between samples."""
    return spread(as_samples(output, batch), 1)
