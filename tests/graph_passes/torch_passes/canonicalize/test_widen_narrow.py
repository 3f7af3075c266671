"""Narrow whole numbers are chosen among, compared and ordered as PyTorch does it."""

from __future__ import annotations

import torch
from helpers.graphs import TARGETS, checked
from torch import Tensor

NARROW = (torch.uint8, torch.int8, torch.int16)
X = torch.tensor([[3, -3, 100, 7, 0], [1, 127, -128, 4, 6], [200, 90, -90, 2, 5]])


def choices(x: Tensor) -> tuple[Tensor, ...]:
    ordered = *x.sort(1), *x.sort(1, descending=True), x.argsort(0), x.topk(2, 1).values
    best = x.max(), x.min(), *x.max(1), *x.min(0), x.amax(1), x.amin((0, 1)), *x.aminmax(dim=1)
    return *ordered, *best, x.argmax(1), x.argmin(), x.cummax(1).values


def comparisons(x: Tensor) -> tuple[Tensor, ...]:
    y = x.flip(1)
    return x < y, x >= y, x == y, x != 3, x <= 5, x > 0


def test_choices_of_every_narrow_type() -> None:
    checked(
        lambda *own: tuple(part for x in own for part in (*choices(x), *comparisons(x))),
        *(X.to(kind) for kind in NARROW),
        targets=TARGETS,
    )


def test_choices_among_truth_values() -> None:
    truths = X > 3

    def function(x: Tensor) -> tuple[Tensor, ...]:
        best = x.max(), x.min(), *x.max(1), *x.min(0), x.amax(1), x.amin(0)
        return *best, x.sort(1).values, x.argsort(dim=1, stable=True), x < x.flip(1), x == x.flip(1)

    checked(function, truths, targets=TARGETS)
