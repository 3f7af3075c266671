"""How far the channels of an output may be off in int8: by how much they vary, and what int8 does.

A channel is held to a share of its own spread, whatever the others do: boxes in pixels hide no
scores beside them. One that varies little is off by what int8 makes of the numbers that it is
computed from, however little that has to do with its spread; so that is measured on the traced
graph (``quantised_run``) and allowed as well. With o the spread of a channel and q what int8 does
to it, both roots of mean squares over n values, its error may be

    (1 + 1 / √n) · max(0.7 · o, 3 · q)

ViTs come to 0.05 … 0.18 of the first on images and on noise, and to 0.6 … 1.7 of q.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.comparison import Channels, along_axes
from tokexport.runtimes.tolerances.scales import fills

#: The share of its own spread that a channel may be off.
CHANNEL_TOLERANCE: Final = 0.7
#: How many times what int8 does to it.
_EXPLAINED: Final = 3.0
#: The same of the largest that it does to one value, for a largest entry that changes its place.
_TOP1: Final = 2.0
#: The least that is allowed, as a share of the size of a channel.
_FLOOR: Final = 1e-5
#: How many values the ordinary channel counts for, where few tell what int8 does to one.
_PRIOR: Final = 8
#: The share of its spread over all its values that a channel has where decisions move them about.
_MOVED: Final = 0.5
#: The fewest values that tell the spread of a channel by themselves.
_FEWEST: Final = 8


def channels_of(expected: Array, explained: Array, decides: bool) -> tuple[Channels, str]:
    """Returns how far each channel may be off, and which int8 hides, a clause; '' for none.

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
    for axis, spread in own.items():
        rms, count = measured[axis]
        most = _EXPLAINED * _steadied(rms, count)
        allowed[axis] = np.maximum.reduce(
            (CHANNEL_TOLERANCE * spread, most, _FLOOR * size[axis][0])
        )
        lost = int(np.count_nonzero((most > spread) & (spread > 0)))
        if lost:
            hidden.append(f"{lost} of {len(spread)} indices of axis {axis}")
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
