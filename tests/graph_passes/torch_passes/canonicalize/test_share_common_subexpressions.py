"""What is computed twice is computed once, unless twice means two things."""

from __future__ import annotations

import pytest
import torch
from helpers.graphs import calls, checked, rewrite
from torch import Tensor

from tokexport.graph_passes.torch_passes.canonicalize.share_common_subexpressions import (
    ShareCommonSubexpressions,
)

PASSES = (ShareCommonSubexpressions(),)


def test_repeats_are_shared_through_chains_and_lists() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.cat([x[:, ::2], x[:, 1::2]], dim=1).sum((1, 2), keepdim=True)
        other = torch.cat([x[:, ::2], x[:, 1::2]], dim=1).sum((1, 2), keepdim=True)
        return one * 2, other * 3

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x, passes=PASSES)
    assert calls(rewritten) == {"aten.slice": 2, "aten.cat": 1, "aten.sum": 1, "aten.mul": 2}


def test_results_of_a_shared_call_are_shared() -> None:
    def function(x: Tensor) -> Tensor:
        return x.max(1)[0] + x.max(1)[0] * x.max(1)[1]

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x, passes=PASSES)
    assert calls(rewritten)["aten.max"] == 1


def test_outputs_may_become_one() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x * 2

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x, passes=PASSES)
    assert calls(rewritten) == {"aten.mul": 1}
    assert len(set(rewritten.program.graph_signature.user_outputs)) == 1


def test_arguments_that_only_look_equal_stay_apart() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        n = x.long()
        return (
            n * 1,
            n * 1.0,
            n * True,
            torch.copysign(x, 0.0),
            torch.copysign(x, -0.0),
            torch.zeros(2, dtype=torch.float32) + x[0, 0, 0],
            torch.zeros(2, dtype=torch.float64) + x[0, 0, 0],
            x.sum(1),
            x.sum(1, keepdim=True),
        )

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x, passes=PASSES)
    assert calls(rewritten)["aten.mul"] == 3
    assert calls(rewritten)["aten.copysign"] == 2
    assert calls(rewritten)["aten.zeros"] == 2


def test_random_numbers_are_drawn_as_often_as_before() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.rand(3) + x, torch.rand(3) + torch.rand_like(x) * torch.rand_like(x)

    x = torch.randn(3)
    rewritten = rewrite(function, x, passes=PASSES)
    assert calls(rewritten)["aten.rand"] == 2
    assert calls(rewritten)["aten.rand_like"] == 2


def test_operators_of_others_are_called_as_often_as_before() -> None:
    with torch.library._scoped_library("tokexport_test", "DEF") as library:
        library.define("step(Tensor x) -> Tensor")
        library.impl("step", lambda x: x + 1, "CompositeExplicitAutograd")
        torch.library.register_fake("tokexport_test::step", torch.empty_like, lib=library)

        def function(x: Tensor) -> Tensor:
            step = torch.ops.tokexport_test.step
            return step(x) * step(x)

        x = torch.randn(3)
        rewritten = checked(function, x, passes=PASSES)
        assert calls(rewritten)["tokexport_test.step"] == 2


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(number: float) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.stack([x.clamp(max=number), x.clamp(max=number)])

    x = torch.randn(3)
    rewritten = checked(function, x, passes=PASSES)
    assert calls(rewritten)["aten.clamp"] == 1
