"""What a reduction should come to, in plain Python: the language of the references beside it.

A reference works on one image, in loops over its tokens: rows x (N, C), sizes a list of N numbers
or None. Nothing here is taken from the package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Sizes = list[float] | None


@dataclass
class Outcome:
    """The tokens behind a reduction.

    Attributes:
        groups: For each new token the old ones in it, first the one that it continues. An old token
            in no group was dropped.
        x: Their values.
        size: How many patches each stands for, or None.
    """

    groups: list[list[int]]
    x: list[Array]
    size: Sizes


def untouched(x: Array, size: Sizes) -> Outcome:
    """Nothing happens."""
    return Outcome([[n] for n in range(len(x))], list(x), size)


def selected(x: Array, size: Sizes, stay: Sequence[int]) -> Outcome:
    """Some tokens stay, in this order."""
    left = None if size is None else [size[n] for n in stay]
    return Outcome([[n] for n in stay], [x[n] for n in stay], left)


def merged_by_size(x: Array, size: Sizes, groups: list[list[int]]) -> Outcome:
    """Groups become size-weighted means; sizes add up."""
    size = size or [1.0] * len(x)
    total = [sum(size[n] for n in group) for group in groups]
    rows = [
        np.sum([size[n] * x[n] for n in group], axis=0) / whole
        for group, whole in zip(groups, total, strict=True)
    ]
    return Outcome(groups, rows, total)


def merged_by_mean(x: Array, groups: list[list[int]]) -> Outcome:
    """Groups become plain means; no sizes."""
    return Outcome(groups, [np.mean([x[n] for n in group], axis=0) for group in groups], None)


def ranked(scores: Sequence[float], lowest: bool = False) -> list[int]:
    """Positions from the highest score on; of equal ones the lower position first."""
    sign = 1 if lowest else -1
    return sorted(range(len(scores)), key=lambda n: (sign * scores[n], n))


def cosine(one: Array, other: Array) -> float:
    """The cosine of two vectors."""
    norms = math.sqrt(float(one @ one)) * math.sqrt(float(other @ other))
    return float(one @ other) / norms


def head_mean(keys: Array) -> Array:
    """Keys (H, N, D) averaged over heads."""
    return sum(keys[1:], start=keys[0]) / len(keys)


def best(row: Sequence[float]) -> int:
    """The position of the highest number; of equal ones the lowest position."""
    return ranked(row)[0]


@dataclass
class Pairing:
    """Bipartite soft matching: the r tokens of a with the best partners in b.

    Attributes:
        kept: What stays of a, from the best partner on.
        merged: What goes, and into which of b, from the best partner on.
    """

    kept: list[int]
    merged: list[tuple[int, int]]


def pair(
    a: Sequence[int], b: Sequence[int], score: dict[tuple[int, int], float], r: int
) -> Pairing:
    """Pairs by score[one of a, one of b]."""
    partner = [best([score[one, other] for other in b]) for one in a]
    strength = [score[one, b[to]] for one, to in zip(a, partner, strict=True)]
    order = ranked(strength)
    return Pairing([a[n] for n in order[r:]], [(a[n], b[partner[n]]) for n in order[:r]])


def grouped(alone: Sequence[int], targets: Sequence[int], pairing: Pairing) -> list[list[int]]:
    """Single tokens, then the targets with what merges into them."""
    groups = [[n] for n in alone]
    for target in targets:
        groups.append([target, *(src for src, dst in pairing.merged if dst == target)])
    return groups
