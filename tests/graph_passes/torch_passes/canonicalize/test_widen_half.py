"""What a model computes in a half type is computed in float32, and its outputs keep their types."""

from __future__ import annotations

import pytest
import torch
from helpers.graphs import calls, checked
from torch import Tensor

from tokexport.graph_passes.torch_passes.canonicalize.drop_identities import DropIdentities
from tokexport.graph_passes.torch_passes.canonicalize.widen_half import WidenHalf

PASSES = (WidenHalf(), DropIdentities())
HALVES = [torch.float16, torch.bfloat16]


def half_values(rewritten: object) -> list[torch.dtype]:
    graph = rewritten.program.graph  # type: ignore[attr-defined]
    found = [node.meta["val"].dtype for node in graph.nodes if node.op == "call_function"]
    return [dtype for dtype in found if dtype in HALVES]


@pytest.mark.parametrize("half", HALVES)
def test_a_region_in_a_half_type_computes_in_float32(half: torch.dtype) -> None:
    def function(x: Tensor) -> Tensor:
        y = x.to(half)
        return (y @ y.mT + torch.ones(6, dtype=half)).softmax(-1).float()

    rewritten = checked(function, torch.randn(2, 6, 4), passes=PASSES, tolerance=3e-2)
    assert half_values(rewritten) == []
    assert calls(rewritten)["aten._to_copy"] == 0


@pytest.mark.parametrize("half", HALVES)
def test_inputs_and_outputs_keep_their_types(half: torch.dtype) -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x * 2, (y * 2).to(half)

    given = torch.randn(2, 6).to(half), torch.randn(2, 6)
    rewritten = checked(function, *given, passes=PASSES, tolerance=1e-2)
    assert half_values(rewritten) == [half] * 3


def test_a_graph_without_half_types_stays() -> None:
    rewritten = checked(lambda x: (x.double() * 2).float() + x, torch.randn(2, 6), passes=PASSES)
    assert rewritten.changes["widen half types"] == 0
