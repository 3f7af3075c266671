"""The token operators again, as loops over numpy arrays: what the real ones are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def gather_tokens(x: Array, index: Array) -> Array:
    """Copies row after row."""
    return np.stack([np.stack([x[b, n] for n in index[b]]) for b in range(len(x))])


def scatter_tokens(dst: Array, index: Array, src: Array, mode: str, include_self: bool) -> Array:
    """Collects for each destination the rows that meet there, then reduces them in float64."""
    found = dst.copy()
    for b in range(dst.shape[0]):
        for n in range(dst.shape[1]):
            rows = [src[b, k] for k in range(index.shape[1]) if index[b, k] == n]
            if rows:
                found[b, n] = _reduced(rows, dst[b, n], mode, include_self)
    return found


def _reduced(rows: list[Array], own: Array, mode: str, include_self: bool) -> Array:
    if mode == "none":
        return rows[-1]
    terms = np.stack([own, *rows] if include_self else rows).astype(np.float64)
    reductions = {"sum": np.sum, "mean": np.mean, "prod": np.prod, "amax": np.max, "amin": np.min}
    reduced: Array = reductions[mode](terms, axis=0)
    return reduced.astype(own.dtype)


def bipartite_match(scores: Array, r: int, order: str) -> tuple[Array, Array, Array]:
    """Ranks the rows by their best score; of equal scores the lower index comes first."""
    kept, src, dst = [], [], []
    for image in scores:
        best = [max(row) for row in image]
        ranked = sorted(range(len(best)), key=lambda n: (-best[n], n))
        src.append(ranked[:r])
        rest = ranked[r:]
        kept.append(sorted(rest) if order == "index" else rest)
        dst.append([min(m for m, s in enumerate(image[n]) if s == best[n]) for n in ranked[:r]])
    return (
        np.array(kept, np.int64).reshape(len(scores), -1),
        np.array(src, np.int64).reshape(len(scores), -1),
        np.array(dst, np.int64).reshape(len(scores), -1),
    )


def merge_tokens(a: Array, b: Array, kept: Array, src: Array, dst: Array, mode: str) -> Array:
    """Kept rows of a, then b with its sources."""
    rest = np.stack([a[i][kept[i]] for i in range(len(a))])
    moved = np.stack([a[i][src[i]] for i in range(len(a))])
    merged = b if mode == "none" else scatter_tokens(b, dst, moved, mode, True)
    return np.concatenate([rest, merged], axis=1)


def sized_attention(q: Array, k: Array, v: Array, log_size: Array | None, scale: float) -> Array:
    """Softmax attention of one image and head after the other, in float64."""
    found = np.empty((*q.shape[:3], v.shape[3]), np.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            logits = q[b, h].astype(np.float64) @ k[b, h].T * scale
            if log_size is not None:
                logits = logits + log_size[b]
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            found[b, h] = weights / weights.sum(axis=1, keepdims=True) @ v[b, h]
    return found.astype(q.dtype)
