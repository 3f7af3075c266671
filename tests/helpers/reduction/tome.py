"""ToMe, PYRA, ToFu and AIM's merging stage on one image: matchings of even with odd tokens."""

from __future__ import annotations

import math

import numpy as np
from helpers.reduction.outcome import (
    Array,
    Outcome,
    Pairing,
    Sizes,
    cosine,
    grouped,
    head_mean,
    merged_by_mean,
    merged_by_size,
    pair,
    selected,
    untouched,
)


def matching(metric: Array, special: int, r: int) -> tuple[list[int], list[int], Pairing]:
    """Matches even patches with odd ones; returns who stays alone, the odd ones, and the pairs."""
    patches = range(special, len(metric))
    even = [n for n in patches if n % 2 == 0]
    odd = [n for n in patches if n % 2 == 1]
    score = {(a, b): cosine(metric[a], metric[b]) for a in even for b in odd}
    pairing = pair(even, odd, score, r) if r else Pairing(even, [])
    kept = sorted(pairing.kept) if special else pairing.kept
    return [*range(special), *kept], odd, pairing


def tome(x: Array, size: Sizes, keys: Array, special: int, r: int) -> Outcome:
    """The r best pairs merge, at most half of the patches."""
    r = min(r, (len(x) - special) // 2)
    if r == 0:
        return untouched(x, size)
    return merged_by_size(x, size, grouped(*matching(head_mean(keys), special, r)))


def pyra(
    x: Array, size: Sizes, keys: Array, special: int, r: int, a: list[float], b: list[float]
) -> Outcome:
    """ToMe with sources that change before they merge; the norm has weight 1 and bias 0."""
    if r == 0:
        return untouched(x, size)
    alone, odd, pairing = matching(head_mean(keys), special, r)
    norms = []
    for src, dst in pairing.merged:
        both = x[src] + x[dst]
        spread = math.sqrt(np.mean((both - both.mean()) ** 2) + 1e-5)
        norms.append((both - both.mean()) / spread)
    by_channel = [
        2 * _sigmoid(sum(a[row] * norms[row][channel] for row in range(r)))
        for channel in range(x.shape[1])
    ]
    changed = x.copy()
    for row, (src, _) in enumerate(pairing.merged):
        by_pair = 2 * _sigmoid(sum(n * w for n, w in zip(norms[row], b, strict=True))) - 1
        changed[src] = x[src] + x[src] * by_channel * by_pair
    return merged_by_size(changed, size, grouped(alone, odd, pairing))


def _sigmoid(number: float) -> float:
    return 1 / (1 + math.exp(-number))


def tofu(
    x: Array, keys: Array, special: int, keep: float, layer: int, depth: int, norm: str
) -> Outcome:
    """A share of all tokens stays: early layers prune, later ones merge by MLERP."""
    r = min(math.floor(len(x) - len(x) * keep), (len(x) - special) // 2)
    if r == 0:
        return untouched(x, None)
    alone, odd, pairing = matching(head_mean(keys), special, r)
    if layer <= depth / 2:
        return selected(x, None, [*alone, *odd])
    groups = grouped(alone, odd, pairing)
    rows = []
    for group in groups:
        mean = np.mean([x[n] for n in group], axis=0)
        largest = max(np.linalg.norm(x[n]) for n in group)
        own = np.linalg.norm(mean if norm == "paper" else x[group[0]])
        rows.append(mean / own * largest)
    return Outcome(groups, rows, None)


def aim_round(x: Array, special: int) -> Outcome:
    """Half of the patches merge; even and odd are counted from the first patch."""
    patches = range(special, len(x))
    first, second = list(patches[::2]), list(patches[1::2])
    if not second:
        return untouched(x, None)
    score = {(a, b): cosine(x[a], x[b]) for a in first for b in second}
    pairing = pair(first, second, score, len(second))
    return merged_by_mean(x, grouped([*range(special), *pairing.kept], second, pairing))
