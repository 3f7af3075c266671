"""The methods that select patches, on one image; DiffRate, which merges behind its selection too.

``attended`` is the head-mean attention of the class token to all N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from helpers.reduction.outcome import (
    Array,
    Outcome,
    Sizes,
    best,
    cosine,
    ranked,
    selected,
    untouched,
)


def by_attention(attended: Sequence[float], special: int) -> list[int]:
    """The patches, the most attended first."""
    return [special + n for n in ranked(attended[special:])]


def evit(
    x: Array, size: Sizes, attended: Sequence[float], special: int, keep: float, fuse: bool
) -> Outcome:
    """The most attended patches stay in score order; the rest may become one token."""
    left = math.ceil(keep * (len(x) - special))
    if left == len(x) - special:
        return untouched(x, size)
    order = by_attention(attended, special)
    outcome = selected(x, size, [*range(special), *order[:left]])
    if fuse:
        rest = order[left:]
        outcome.groups.append([rest[0]])
        outcome.x.append(np.sum([attended[n] * x[n] for n in rest], axis=0))
        if outcome.size is not None and size is not None:
            outcome.size.append(size[rest[0]])
    return outcome


def diffrate(
    x: Array, size: Sizes, attended: Sequence[float], special: int, prune: int, merge: int
) -> Outcome:
    """Sorts, prunes to ``prune`` tokens, merges to ``merge``; at least one patch is left."""
    size = size or [1.0] * len(x)
    prune = max(min(prune, len(x)), special + 1)
    merge = max(min(merge, prune), special + 1)
    order = [*range(special), *by_attention(attended, special)][:prune]
    groups = [[n] for n in order[:merge]]
    grown = [size[n] for n in order[:merge]]
    for src in order[merge:]:
        alike = [cosine(x[src], x[dst]) for dst in order[special:merge]]
        into = special + best(alike)
        groups[into].append(src)
        grown[into] += size[src] * max(alike)
    return Outcome(groups, [np.mean([x[n] for n in g], axis=0) for g in groups], grown)


def in_own_order(x: Array, size: Sizes, scores: Sequence[float], special: int, k: int) -> Outcome:
    """The k patches of the highest scores stay where they were."""
    if k >= len(x) - special:
        return untouched(x, size)
    stay = sorted(special + n for n in ranked(scores)[:k])
    return selected(x, size, [*range(special), *stay])


def in_score_order(x: Array, size: Sizes, scores: Sequence[float], special: int, k: int) -> Outcome:
    """The k patches of the highest scores stay, the highest first."""
    if k >= len(x) - special:
        return untouched(x, size)
    return selected(x, size, [*range(special), *(special + n for n in ranked(scores)[:k])])


def divprune(x: Array, size: Sizes, special: int, keep: float) -> Outcome:
    """Greedily the patch farthest from all chosen ones."""
    patches = list(range(special, len(x)))
    k = max(round(keep * len(patches)), 1)
    if k >= len(patches):
        return untouched(x, size)
    distance = {(i, j): 1 - cosine(x[i], x[j]) for i in patches for j in patches}
    lonely = [sorted(distance[i, j] for j in patches)[1] for i in patches]
    chosen = [patches[best(lonely)]]
    while len(chosen) < k:
        left = [n for n in patches if n not in chosen]
        least = [min(distance[n, one] for one in chosen) for n in left]
        chosen.append(left[best(least)])
    return selected(x, size, [*range(special), *sorted(chosen)])
