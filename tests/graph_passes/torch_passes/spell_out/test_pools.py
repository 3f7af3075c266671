"""Pools that round up, and pools to a size, give what PyTorch gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.graphs import calls, checked
from torch import Tensor, nn

#: Kernel, stride and padding, for an image of 7 × 10.
WINDOWS = [(2, 2, 0), (2, 2, 1), (3, 2, 1), (3, 3, 0), (2, 3, 1), ((3, 2), (2, 1), (1, 0))]
KINDS: dict[str, Callable[..., Tensor]] = {
    "largest": lambda x, k, s, p: F.max_pool2d(x, k, s, p, ceil_mode=True),
    "mean": lambda x, k, s, p: F.avg_pool2d(x, k, s, p, ceil_mode=True),
    "mean inside": lambda x, k, s, p: F.avg_pool2d(
        x, k, s, p, ceil_mode=True, count_include_pad=False
    ),
    "sum": lambda x, k, s, p: F.avg_pool2d(x, k, s, p, ceil_mode=True, divisor_override=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pools_that_round_up(kind: str) -> None:
    x = torch.randn(2, 3, 7, 10, generator=torch.Generator().manual_seed(0))
    checked(
        lambda x: tuple(KINDS[kind](x, *window) for window in WINDOWS),
        x,
        targets=("ort", "openvino"),
    )


def test_the_largest_of_each_window_of_a_size() -> None:
    x = torch.randn(2, 3, 7, 10, generator=torch.Generator().manual_seed(0))
    rewritten = checked(
        lambda x: tuple(F.adaptive_max_pool2d(x, size) for size in (1, 3, 5, (7, 2), (4, 10))),
        x,
        targets=("ort", "openvino"),
    )
    assert "aten.adaptive_max_pool2d" not in calls(rewritten)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_the_most_frequent_value_and_its_place(dtype: torch.dtype) -> None:
    x = torch.randint(0, 4, (3, 9, 5), generator=torch.Generator().manual_seed(0)).to(dtype)
    checked(
        lambda x: (*torch.mode(x, 1), torch.mode(x).values, *torch.mode(x, 0, keepdim=True)),
        x,
        targets=("ort", "openvino"),
    )


@pytest.mark.parametrize("shape", [(1,), (6, 1), ()])
def test_a_gain_that_is_no_vector_behind_a_residual(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.randn(shape, generator=draw))
            self.bias = nn.Parameter(torch.randn(shape, generator=draw))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x = x + y
            d = x - x.mean(-1, keepdim=True)
            return d / (d.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * self.gain + self.bias

    x, y = torch.randn(2, 6, 16, generator=draw), torch.randn(2, 6, 16, generator=draw)
    checked(Normed(), x, y, targets=("ort", "openvino"))
