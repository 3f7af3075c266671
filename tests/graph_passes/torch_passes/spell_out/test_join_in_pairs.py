"""Sums and products of whole numbers wrap around as PyTorch's do, and small ones stay one call."""

from __future__ import annotations

import torch
from helpers.graphs import calls, checked
from torch import Tensor

WIDE = torch.tensor(
    [
        [[2**53 + 1, 2, 4], [-(2**62), -(2**62) - 1, -1]],
        [[2**62 + 1, 2**62, 2**62], [2**40, 2**40 + 1, 3]],
    ]
)


def joined(x: Tensor) -> tuple[Tensor, ...]:
    sums = x.sum(), x.sum(2), x.sum((0, -1), keepdim=True), x.sum(1, dtype=torch.int32)
    return *sums, x.prod(2), x.prod(0, keepdim=True), x.prod(), x.int().sum(2), x[:, 0, 0].sum()


def test_wide_numbers_wrap_around() -> None:
    rewritten = checked(joined, WIDE, targets=("ort",), tolerance=0.0)
    assert {"aten.sum", "aten.prod"}.isdisjoint(calls(rewritten))


def test_numbers_of_32_bits_are_exact_in_openvino() -> None:
    x = torch.tensor([[2**24 + 1, 2, 2**24 + 3, -7, 5], [3, 2**28 + 1, -1, 1, 1]])
    checked(lambda x: (x.sum(1), x.sum(), x.prod(1)[1:]), x, targets=("openvino",), tolerance=0.0)


def test_what_is_bounded_stays_one_call() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        places = x.argsort(1)
        counts = (x > 0).sum(1), places.sum(1), places.to(torch.int16).sum(), (x > 0).int().prod(1)
        return *counts, x.sum(1), x.long().to(torch.uint8).sum(0)

    rewritten = checked(function, torch.rand(3, 9), targets=("ort", "openvino"))
    assert calls(rewritten)["aten.sum"] + calls(rewritten)["aten.prod"] == 6
