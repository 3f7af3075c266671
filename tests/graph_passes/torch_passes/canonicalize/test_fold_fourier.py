"""A chain with a Fourier transform along one axis is one product with a constant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked, emitted, lowered, rewrite
from models.zoo.dct import reduce_by_fft
from torch import Tensor

from tokexport.graph_passes.torch_passes.canonicalize.fold_fourier import FoldFourier

PASSES = (FoldFourier(),)


def filtered(x: Tensor) -> Tensor:
    """Weighs the frequencies of (B, N, C) along the tokens."""
    weights = 1.0 / (1 + torch.arange(x.shape[1] // 2 + 1))[:, None]
    return torch.fft.irfft(torch.fft.rfft(x, dim=1) * weights, n=x.shape[1], dim=1)


CHAINS: dict[str, Callable[[Tensor], Tensor]] = {
    "a truncated DCT of the tokens": lambda x: reduce_by_fft(x, 7),
    "of the tokens behind the first": lambda x: reduce_by_fft(x[:, 1:], 5),
    "a filter of the tokens": filtered,
    "the real part": lambda x: torch.fft.fft(x, dim=1).real,
    "along the channels": lambda x: torch.fft.fft(x).imag * 0.5,
    "the first axis": lambda x: torch.fft.fft(x, dim=0).real,
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_one_product(name: str) -> None:
    x = torch.randn(2, 10, 4)
    rewritten = checked(CHAINS[name], x, passes=PASSES, targets=TARGETS, tolerance=2e-6)
    assert calls(rewritten)["aten.matmul"] == 1
    assert set(calls(rewritten)) <= {"aten.matmul", "aten.permute", "aten.clone"}
    model = lowered(emitted(rewrite(CHAINS[name], x)), "trt")
    assert "DFT" not in {node.op_type for node in model.graph}


def test_two_chains_have_constants_of_their_own() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return reduce_by_fft(x, 7), filtered(x.relu())

    rewritten = checked(function, torch.randn(2, 10, 4), targets=TARGETS, tolerance=2e-6)
    assert calls(rewritten) == {"aten.matmul": 2, "aten.relu": 1}


WEIGHTS = 1 + 0.01 * torch.arange(36.0).reshape(9, 4)
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "two axes at once": lambda x: torch.fft.fft2(x).real,
    "an absolute value": lambda x: torch.fft.fft(x, dim=1).abs(),
    "a filter that depends on x": lambda x: torch.fft.irfft(
        torch.fft.rfft(x, dim=1) * x[:, :6], n=10, dim=1
    ),
    "one loud row, and others that differ by channel": lambda x: (
        torch.fft.fft(x, dim=1).real * torch.cat([torch.full((1, 4), 1e12), WEIGHTS])
    ),
    "an offset": lambda x: (torch.fft.fft(x, dim=1) + torch.ones(1)).real.relu(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_matrix_along_one_axis_stays(name: str) -> None:
    rewritten = checked(OTHERS[name], torch.randn(2, 10, 4), passes=PASSES)
    assert calls(rewritten)["aten.matmul"] == 0
    assert any("fft" in call for call in calls(rewritten))
