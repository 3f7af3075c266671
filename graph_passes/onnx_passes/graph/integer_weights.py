"""Quantises a matrix to 8-bit integers, with a scale for each column."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def per_channel(
    matrix: NDArray[np.float32], bits: int = 8
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantises symmetrically: column n is about ``scale[n] · integers[:, n]``.

    Args:
        matrix: (K, N).
        bits: 8; or 7, where a processor adds two products of a byte in 16 bits and saturates.

    Returns:
        The integers (K, N) and the scales (N,).
    """
    most = 2 ** (bits - 1) - 1
    largest = np.abs(matrix).max(axis=0, initial=0.0)
    scale = np.where(largest > 0, largest / most, 1.0).astype(np.float32)
    integers = np.clip(np.rint(matrix / scale), -most, most).astype(np.int8)
    return integers, scale
