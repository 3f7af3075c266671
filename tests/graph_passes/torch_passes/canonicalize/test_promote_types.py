"""Operands of different types are computed with as PyTorch does: a table of all pairs."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.graphs import checked, run_eager
from helpers.thorough import thorough_but
from torch import Tensor

TYPES = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32)
NUMBERS: tuple[Any, ...] = (True, 3, 1.5)
X = {
    torch.bool: torch.tensor([[True, False, True, True, False, True]]),
    torch.uint8: torch.tensor([[0, 1, 3, 7, 200, 255]], dtype=torch.uint8),
    torch.int32: torch.tensor([[-3, 1, 2, 5, 4000, -7]], dtype=torch.int32),
    torch.int64: torch.tensor([[-2, 1, 3, 6, 7000, -9]]),
    torch.float32: torch.tensor([[-2.5, 1.0, 0.25, 6.0, 300.0, -1.0]]),
}
OF_TWO: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "eq": operator.eq,
    "lt": operator.lt,
    "ge": operator.ge,
    "and": operator.and_,
    "xor": operator.xor,
    "where": lambda a, b: torch.where(torch.tensor([[True, False] * 3]), a, b),
    "cat": lambda a, b: torch.cat([a, b], dim=1),
}
OF_ONE: dict[str, Callable[[Any], Any]] = {
    "sqrt": lambda x: torch.sqrt(x.abs() if x.dtype != torch.bool else x),
    "exp": lambda x: torch.exp(x % 5 if x.dtype != torch.bool else x),
    "sin": torch.sin,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "log": lambda x: torch.log(x.abs() + 1 if x.dtype != torch.bool else x),
    "reciprocal": torch.reciprocal,
    "sum": lambda x: x.sum(1),
    "cumsum": lambda x: x.cumsum(1),
    "softmax": lambda x: x.softmax(1, dtype=torch.float32),
    "clamp": lambda x: x.clamp(min=0.5),
    "square": lambda x: x**2,
    "mean": lambda x: x.float().mean(1),
}

#: One of each kind: what computes, compares, joins, chooses or divides; and what sums or rounds.
FIRST_OF_TWO = ("div", "eq", "where", "cat")
FIRST_OF_ONE = ("sqrt", "sum", "cumsum", "clamp", "mean")


def runs(call: Callable[[], Any]) -> bool:
    """Tells whether PyTorch takes a call."""
    try:
        call()
    except (RuntimeError, TypeError):
        return False
    return True


def pairs(function: Callable[[Any, Any], Any]) -> Callable[..., tuple[Tensor, ...]]:
    """Returns a function of one tensor of each type that calls another on all pairs it takes."""
    numbers = dict(zip("bif", NUMBERS, strict=True))
    tensors = [X[kind] for kind in TYPES]

    def of(place: int | str, own: Any) -> Any:
        return numbers[place] if isinstance(place, str) else own[place]

    known = [
        (one, other)
        for one, other in itertools.product([*range(len(TYPES)), *numbers], repeat=2)
        if not isinstance(one, str) or not isinstance(other, str)
        if runs(lambda a=one, b=other: function(of(a, tensors), of(b, tensors)))  # type: ignore[misc]
    ]
    return lambda *own: tuple(function(of(a, own), of(b, own)) for a, b in known)


@pytest.mark.parametrize("name", thorough_but(FIRST_OF_TWO, OF_TWO))
def test_all_pairs_of_types(name: str) -> None:
    function = pairs(OF_TWO[name])
    inputs = [X[kind] for kind in TYPES]
    assert len(run_eager(function, *inputs)) >= 16
    checked(function, *inputs, targets=("ort", "openvino"))


@pytest.mark.parametrize("name", thorough_but(FIRST_OF_ONE, OF_ONE))
def test_all_types(name: str) -> None:
    function = OF_ONE[name]
    kinds = [kind for kind in TYPES if runs(lambda k=kind: function(X[k]))]  # type: ignore[misc]
    assert len(kinds) >= 4
    checked(
        lambda *own: tuple(function(x) for x in own),
        *(X[kind] for kind in kinds),
        targets=("ort", "openvino"),
    )


def test_positions_in_int32() -> None:
    x, ids = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 5])
    checked(
        lambda x, ids: (
            x[:, ids],
            x[torch.arange(3, dtype=torch.int32), ids],
            x.index_put((torch.arange(3, dtype=torch.int32), ids), x[:, 0]),
        ),
        *(x, ids.int()),
        targets=("ort", "openvino"),
    )
