"""Rounded quotients of integers stay integers, and are exact at any size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import calls, checked
from torch import Tensor

from tokexport.graph_passes.torch_passes.canonicalize.divide_integers import DivideIntegers

PASSES = (DivideIntegers(),)
ENDS = torch.tensor([[0, 7, -7, 2**24 + 3, -(2**24) - 3, 2**40 + 5, -(2**40) - 5, 2**53 + 1]])
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "floor by a number": lambda x: torch.div(x, 7, rounding_mode="floor"),
    "trunc by a number": lambda x: torch.div(x, 7, rounding_mode="trunc"),
    "trunc by a negative number": lambda x: torch.div(x, -3, rounding_mode="trunc"),
    "floor by a tensor": lambda x: torch.div(x, -(x % 5 + 11), rounding_mode="floor"),
    "floor of a number": lambda x: 2**40 // (x % 5 + 11),
    "trunc by a tensor": lambda x: torch.div(x, -(x % 5 + 11), rounding_mode="trunc"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_rounded_quotient_is_spelled_out_and_exact(name: str) -> None:
    rewritten = checked(FORMS[name], ENDS, passes=PASSES, targets=("ort",))
    assert "aten.div" not in calls(rewritten)
    assert calls(rewritten)["aten.floor_divide"] == 1


def test_quotients_of_floats_and_of_int32_stay_what_they_are() -> None:
    rewritten = checked(
        lambda x: torch.div(x, 0.7, rounding_mode="floor"), torch.randn(2, 5), passes=PASSES
    )
    assert calls(rewritten)["aten.div"] == 1
    narrow = checked(FORMS["trunc by a number"], ENDS[:, :5].int(), passes=PASSES)
    assert calls(narrow)["aten.floor_divide"] == 1
