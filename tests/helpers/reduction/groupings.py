"""PiToMe, DPC-KNN and CrossGET on one image: methods that look at all pairs of patches."""

from __future__ import annotations

import math

import numpy as np
from helpers.reduction.outcome import (
    Array,
    Outcome,
    Pairing,
    Sizes,
    best,
    cosine,
    grouped,
    head_mean,
    merged_by_mean,
    merged_by_size,
    pair,
    ranked,
    untouched,
)


def pitome(
    x: Array,
    size: Sizes,
    keys: Array,
    special: int,
    *,
    keep: float,
    layer: int,
    depth: int,
    margin: float = 0.75,
    alpha: float = 1.0,
) -> Outcome:
    """Patches of high energy merge; in the second half of the layers the others are protected."""
    patches = list(range(special, len(x)))
    r = min(math.floor(len(patches) - len(patches) * keep), len(patches) // 2)
    if r == 0:
        return untouched(x, size)
    metric = head_mean(keys)
    score = {(i, j): cosine(metric[i], metric[j]) for i in patches for j in patches}
    above = {both: one - margin * (1 - layer / depth) for both, one in score.items()}
    elu = {both: one if one > 0 else alpha * (math.exp(one) - 1) for both, one in above.items()}
    energy = [sum(elu[i, j] for j in patches) / len(patches) for i in patches]
    order = [patches[n] for n in ranked(energy)]
    crowded = order if layer < depth // 2 else order[: 2 * r]
    protected = order[len(crowded) :]
    a, b = crowded[::2], crowded[1::2]
    pairing = pair(a, b, score, r)
    alone = [*range(special), *protected, *pairing.kept]
    return merged_by_size(x, size, grouped(alone, b, pairing))


def dpcknn(x: Array, special: int, keep: float, neighbours: int) -> Outcome:
    """Patches gather around those that are dense and far from anything denser."""
    patches = list(range(special, len(x)))
    clusters = math.ceil(keep * len(patches))
    if clusters == len(patches):
        return untouched(x, None)
    distance = {
        (i, j): math.sqrt(sum((x[i] - x[j]) ** 2)) / math.sqrt(x.shape[1])
        for i in patches
        for j in patches
    }
    density = []
    for i in patches:
        nearest = sorted(distance[i, j] for j in patches)[:neighbours]
        density.append(math.exp(-sum(one**2 for one in nearest) / len(nearest)))
    scores = []
    for i, own in zip(patches, density, strict=True):
        denser = [distance[i, j] for j, its in zip(patches, density, strict=True) if its > own]
        scores.append(own * min(denser, default=max(distance.values())))
    order = [patches[n] for n in ranked(scores)]
    centres = order[:clusters]
    pairs = [
        (n, centres[best([-distance[n, centre] for centre in centres])]) for n in order[clusters:]
    ]
    return merged_by_mean(x, grouped(range(special), centres, Pairing([], pairs)))


def crossget(x: Array, size: Sizes, keys: Array, special: int, r: int, token: Array) -> Outcome:
    """What the cross token asks for little and others resemble merges, weighted by softmax."""
    patches = list(range(special, len(x)))
    r = min(r, len(patches) // 2)
    if r == 0:
        return untouched(x, size)
    metric = head_mean(keys)
    alike = {(i, j): cosine(metric[i], metric[j]) for i in patches for j in patches}
    asked = {n: cosine(x[n], token) for n in patches}
    nearest = [max(alike[i, j] for j in patches if j != i) for i in patches]
    order = [patches[n] for n in ranked(nearest)]
    later = {
        n: max((alike[n, other] for other in order[place + 1 :]), default=-1.0)
        for place, n in enumerate(order)
    }
    rank = [patches[n] for n in ranked([asked[n] - later[n] for n in patches], lowest=True)]
    rest = sorted(rank[r:])
    pairs = [(n, rest[best([alike[n, other] for other in rest])]) for n in rank[:r]]
    groups = grouped(range(special), rest, Pairing([], pairs))
    size = size or [1.0] * len(x)
    rows = []
    for group in groups:
        weights = [math.exp(asked.get(n, 0.0)) for n in group]
        total = sum(weight * x[n] for weight, n in zip(weights, group, strict=True))
        rows.append(np.asarray(total) / sum(weights))
    return Outcome(groups, rows, [sum(size[n] for n in group) for group in groups])
