"""MCTF on one image: two passes of matching by similarity, attention received and size."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from helpers.reduction.outcome import Array, Outcome, Sizes, cosine, pair, untouched

BY_SIZE, BY_ATTENTION, BY_MAXIMUM, BY_MEAN = range(4)


@dataclass(frozen=True)
class Options:
    """The method's options, with the defaults of its scripts."""

    tau_sim: float = 1.0
    tau_info: float = 20.0
    tau_size: float = 40.0
    bidirectional: bool = True
    pooling: int = BY_ATTENTION
    least: int = 10


@dataclass
class Group:
    """A token on its way through both passes."""

    members: list[int]
    x: Array
    weight: float
    size: float
    taken: list[Group] = field(default_factory=list)

    def take_in(self, pooling: int) -> None:
        """Merges what was taken, each as it was left by the pass before."""
        all_of_them = [self, *self.taken]
        rows = [one.x for one in all_of_them]
        weights = [one.weight for one in all_of_them]
        if pooling == BY_MAXIMUM:
            self.x = np.max(rows, axis=0)
        elif pooling == BY_MEAN:
            self.x = np.mean(rows, axis=0)
        else:
            weighted = [w * row for w, row in zip(weights, rows, strict=True)]
            self.x = np.sum(weighted, axis=0) / sum(weights)
        self.weight, self.size = sum(weights), sum(one.size for one in all_of_them)
        self.members = [n for one in all_of_them for n in one.members]
        self.taken = []


def count(r: float, tokens: int, special: int, least: int) -> int:
    """How many tokens go: below 1 a share of the patches; ten stay; at most half."""
    r = int((tokens - special) * r) if r < 1 else int(r)
    if tokens - r < least:
        r = tokens - least
    return max(min(r, tokens // 2, tokens - special - 1), 0)


def scores(
    x: Array, received: list[float], size: list[float], special: int, options: Options
) -> dict[tuple[int, int], float]:
    """How much an even and an odd patch should merge."""
    info, small = [1 / one for one in received], [1 / one for one in size]
    info, small = [one / max(info) for one in info], [one / max(small) for one in small]
    patches = range(special, len(x))
    return {
        (i, j): ((cosine(x[i], x[j]) + 1) / 2) ** (1 / options.tau_sim)
        * (info[i] * info[j]) ** (1 / options.tau_info)
        * (small[i] * small[j]) ** (1 / options.tau_size)
        for i in patches
        for j in patches
        if i % 2 == 0 and j % 2 == 1
    }


def mctf(
    x: Array, attention: Array, size: Sizes, special: int, r: float, options: Options
) -> tuple[Outcome, Array]:
    """Returns the tokens, and the attention (H, N, N) merged along."""
    number = count(r, len(x), special, options.least)
    if number == 0:
        return untouched(x, size), attention
    sizes = size or [1.0] * len(x)
    received = [float(attention[:, :, n].mean()) for n in range(len(x))]
    weights = _weights(received, sizes, options.pooling)
    groups = [Group([n], x[n], weights[n], sizes[n]) for n in range(len(x))]
    score = scores(x, received, sizes, special, options)
    even = [n for n in range(special, len(x)) if n % 2 == 0]
    odd = [n for n in range(special, len(x)) if n % 2 == 1]

    forth = number // 2 if options.bidirectional else number
    forth = min(forth, len(even) - 1 if options.bidirectional else len(even))
    left = sorted(_pass(groups, even, odd, score, forth, options.pooling))
    if options.bidirectional:
        back = {(j, i): one for (i, j), one in score.items()}
        odd = _pass(groups, odd, left, back, number - forth, options.pooling)
    order = [groups[n] for n in [*range(special), *left, *odd]]
    outcome = Outcome([g.members for g in order], [g.x for g in order], [g.size for g in order])
    return outcome, _merged_attention(attention, outcome.groups, weights)


def _weights(received: list[float], sizes: list[float], pooling: int) -> list[float]:
    if pooling == BY_SIZE:
        return sizes
    if pooling == BY_ATTENTION:
        return [one * its / max(sizes) for one, its in zip(received, sizes, strict=True)]
    return [1.0] * len(sizes)


def _pass(
    groups: list[Group],
    a: list[int],
    b: list[int],
    score: dict[tuple[int, int], float],
    r: int,
    pooling: int,
) -> list[int]:
    """Merges r of a into b; returns what is left of a, the best score first."""
    if r == 0:
        return list(a) if not b else pair(a, b, score, 0).kept
    pairing = pair(a, b, score, r)
    for src, dst in pairing.merged:
        groups[dst].taken.append(groups[src])
    for dst in b:
        groups[dst].take_in(pooling)
    return pairing.kept


def _merged_attention(attention: Array, groups: list[list[int]], weights: list[float]) -> Array:
    """Sums the columns of merged keys and averages the rows of merged queries."""
    merged = np.zeros((len(attention), len(groups), len(groups)))
    for head, whole in enumerate(attention):
        for row, queries in enumerate(groups):
            total = sum(weights[q] for q in queries)
            for column, keys in enumerate(groups):
                parts = [weights[q] * whole[q, k] for q in queries for k in keys]
                merged[head, row, column] = sum(parts) / total
    return merged
