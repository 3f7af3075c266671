"""Computes the coefficients by which Pillow resizes an axis, as whole numbers that a graph adds.

Pillow resizes images of 8 bits with coefficients in units of 2⁻²², and rounds to 8 bits behind each
axis. A coefficient c, a whole number in these units, is kept in two parts::

    c = 128 · coarse + fine,    −64 ≤ fine < 64

Products of bytes with either part, and all of their sums, are whole numbers below 2²⁴: float32
holds them exactly, whatever the order in which a runtime adds. So every runtime gives Pillow's very
bytes. https://pillow.readthedocs.io/en/stable/handbook/concepts.html#filters describes the filters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

#: The bits behind the point of Pillow's coefficients, and those of the fine part.
POINT: Final = 22
FINE: Final = 7
#: The largest whole number up to which float32 holds all.
_EXACT: Final = 1 << 24
_BYTE: Final = 255
#: How far each filter reaches, in pixels of the smaller image.
_REACH: Final = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}
NEAREST: Final = "nearest"
#: The two numbers of Hamming's window, which Pillow has in float32.
_RAISED: Final = (float(np.float32(0.54)), float(np.float32(0.46)))


@dataclass(frozen=True, eq=False)
class Coefficients:
    """The coefficients of one axis.

    Attributes:
        coarse: (out, in) float32 whole numbers, in units of 2⁻¹⁵.
        fine: (out, in) float32 whole numbers, in units of 2⁻²².
    """

    coarse: np.ndarray
    fine: np.ndarray

    @property
    def exact(self) -> bool:
        """Whether all sums of bytes with them are exact in float32."""
        coarse = _BYTE * np.abs(self.coarse).sum(-1).max()
        fine = _BYTE * np.abs(self.fine).sum(-1).max() + (1 << POINT) + (1 << (POINT - 1))
        return bool(coarse < _EXACT and fine < _EXACT)


def coefficients(size: int, resized: int, interpolation: str) -> Coefficients:
    """Returns the coefficients for an axis of ``size`` pixels that becomes ``resized`` pixels.

    Args:
        size: Its pixels.
        resized: Its pixels afterwards.
        interpolation: ``nearest``, ``box``, ``bilinear``, ``hamming``, ``bicubic``, ``lanczos``.
    """
    if interpolation == NEAREST:
        shares = _nearest(size, resized)
    else:
        shares = _filtered(size, resized, interpolation)
    units = np.floor(np.abs(shares) * (1 << POINT) + 0.5) * np.sign(shares)
    coarse = np.floor((units + (1 << (FINE - 1))) / (1 << FINE))
    fine = units - coarse * (1 << FINE)
    return Coefficients(coarse.astype(np.float32), fine.astype(np.float32))


def _nearest(size: int, resized: int) -> np.ndarray:
    """Returns 1 for the pixel below the middle of each new one, (out, in).

    Pillow steps from one middle to the next, and its rounding errors add up.
    """
    scale = size / resized
    middles = np.cumsum(np.r_[scale / 2, np.full(resized - 1, scale)])
    return np.eye(size)[np.minimum(middles.astype(np.int64), size - 1)]


def _filtered(size: int, resized: int, interpolation: str) -> np.ndarray:
    """Returns each pixel's share of each new one, (out, in); the shares of one add up to 1."""
    scale = size / resized
    wide = max(scale, 1.0)  # a filter widens where the image shrinks
    reach = _REACH[interpolation] * wide
    middles = (np.arange(resized) + 0.5) * scale
    first = np.maximum((middles - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((middles + reach + 0.5).astype(np.int64), size)
    places = np.arange(size)
    away = (places - middles[:, None] + 0.5) * (1.0 / wide)  # in the order in which Pillow rounds
    inside = (places >= first[:, None]) & (places < last[:, None])
    weights = np.where(inside, _weights(away, interpolation), 0.0)
    found: np.ndarray = weights / np.cumsum(weights, axis=-1)[:, -1:]
    return found


def _weights(away: np.ndarray, interpolation: str) -> np.ndarray:
    """Returns what a filter weighs at distances from its middle."""
    x = np.abs(away)
    match interpolation:
        case "box":
            return np.where((away > -0.5) & (away <= 0.5), 1.0, 0.0)
        case "bilinear":
            return np.where(x < 1, 1 - x, 0)
        case "hamming":
            return np.where(x < 1, np.sinc(x) * (_RAISED[0] + _RAISED[1] * np.cos(np.pi * x)), 0)
        case "bicubic":  # a = −0.5
            near = (1.5 * x - 2.5) * x * x + 1
            far = ((-0.5 * x + 2.5) * x - 4) * x + 2
            return np.where(x < 1, near, np.where(x < 2, far, 0))
        case _:  # lanczos
            return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)
