"""cdist is spelled out, and computes what it did."""

from __future__ import annotations

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor

from tokexport.graph_passes.torch_passes.canonicalize.expand_cdist import ExpandCdist

PASSES = (ExpandCdist(),)


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("rows", [5, 40])
def test_distances_are_spelled_out(p: float, rows: int) -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b, p=p)

    a, b = torch.randn(2, rows, 8), torch.randn(2, 7, 8)
    rewritten = checked(function, a, b, passes=PASSES, targets=TARGETS, tolerance=1e-5)
    assert not {"aten.cdist", "aten._cdist_forward"} & set(calls(rewritten))
    assert calls(rewritten)["aten.matmul"] == (p == 2.0 and rows == 40)


@pytest.mark.parametrize("mode", ["use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"])
def test_the_mode_is_kept(mode: str) -> None:
    def function(a: Tensor) -> Tensor:
        return torch.cdist(a, a[:, 3:], compute_mode=mode)

    rewritten = checked(function, torch.randn(2, 30, 8), passes=PASSES, tolerance=1e-5)
    assert calls(rewritten)["aten.matmul"] == mode.startswith("use")


def test_another_p_stays() -> None:
    def function(a: Tensor) -> Tensor:
        return torch.cdist(a, a, p=3.0)

    rewritten = checked(function, torch.randn(2, 5, 8), passes=PASSES)
    assert calls(rewritten)["aten.cdist"] + calls(rewritten)["aten._cdist_forward"] == 1
