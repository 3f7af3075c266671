"""Draws the arguments of the token operators: shapes, indices with duplicates, scores with ties."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[Any]
SEEDS = st.integers(0, 2**32 - 1)


def values(seed: int, *shape: int, levels: int = 0) -> Array:
    """Real numbers of a shape; with ``levels`` only so many different ones, so that some tie."""
    generator = np.random.default_rng(seed)
    if levels:
        return generator.integers(0, levels, shape).astype(np.float32) / 2
    return generator.standard_normal(shape).astype(np.float32)


def rows(seed: int, batch: int, count: int, tokens: int, *, unique: bool = False) -> Array:
    """Row indices (B, K) below ``tokens``; duplicates as they fall, or none."""
    generator = np.random.default_rng(seed)
    if unique:
        return np.stack([generator.permutation(tokens)[:count] for _ in range(batch)])
    return generator.integers(0, tokens, (batch, count))


@st.composite
def scatters(draw: st.DrawFn, mode: str) -> tuple[Array, Array, Array]:
    """Draws dst (B, N, C), index (B, K) and src (B, K, C); no duplicates under mode none."""
    batch, tokens, channels = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(CHANNELS)
    count = draw(st.integers(1, tokens if mode == "none" else 9))
    seed = draw(SEEDS)
    return (
        values(seed, batch, tokens, channels),
        rows(seed + 1, batch, count, tokens, unique=mode == "none"),
        values(seed + 2, batch, count, channels),
    )


@st.composite
def matches(draw: st.DrawFn) -> tuple[Array, int]:
    """Draws scores (B, Na, Nb), some with ties, and r from 1 to all rows."""
    batch, rows_a, rows_b = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(CHANNELS)
    levels = draw(st.sampled_from([0, 0, 3]))
    scores = values(draw(SEEDS), batch, rows_a, rows_b, levels=levels)
    return scores, draw(st.integers(1, rows_a))


CHANNELS = st.integers(1, 6)
