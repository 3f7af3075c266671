"""Shifts of bits, of every type of whole numbers and beyond its ends."""

from __future__ import annotations

import pytest
import torch
from helpers.graphs import calls, checked
from torch import Tensor

WHOLE = torch.tensor([[0, 1, 2, 5, 100, 127, -1, -2, -100, -128]])
TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def shifts(x: Tensor) -> tuple[Tensor, ...]:
    counts = torch.tensor([[1, 3, 7, 2, 0, 5, 6, 4, 2, 1]]).to(x.dtype)
    numbers = (x << 1, x >> 1, x << 7, x >> 7, torch.bitwise_left_shift(x, 3), x >> 3)
    return *numbers, x << counts, x >> counts, 3 << counts, torch.bitwise_right_shift(100, counts)


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_every_type(target: str) -> None:
    inputs = [WHOLE.to(kind) for kind in TYPES]
    rewritten = checked(
        lambda *own: tuple(part for x in own for part in shifts(x)), *inputs, targets=(target,)
    )
    assert not [name for name in calls(rewritten) if "shift" in name]


def test_beyond_the_ends_of_a_type() -> None:
    def function(x: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        return x << count, x >> count, x << 31, x >> 31, x >> 40, x << 40

    whole = torch.tensor([[3, -3, 2**31 - 1, -(2**31), 77, -77]], dtype=torch.int32)
    counts = torch.tensor([[31, 31, 32, 33, -1, -2]], dtype=torch.int32)
    checked(function, whole, counts, targets=("ort",))
    wide = whole.long() * 2**31
    checked(lambda x: (x << 3, x >> 3, x >> 63, x << 62, x >> 62), wide, targets=("ort",))
