"""An einsum that is a product of matrices becomes one; another stays."""

from __future__ import annotations

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked, rewrite
from torch import Tensor

from tokexport.graph_passes.torch_passes.einsum_as_matmul import EinsumAsMatmul

PASSES = (EinsumAsMatmul(),)
SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6, "f": 7}

PRODUCTS = [
    "abce, abde -> abcd",
    "abcd,abde->abce",
    "abcd,abde->abec",
    "ac,bc->ab",
    "abc,dc->abd",
    "abc,dc->dba",
    "abcd,abcd->ab",
    "abcd,aecd->abe",
    "ab,abc->ac",
    "abcde,fdec->bfa",
    "dab,dcb->adc",
    "ab,b->a",
    "a,ab->b",
]
OTHERS = {
    "a diagonal": "aac,ac->ac",
    "an outer product": "a,b->ab",
    "nothing summed": "ab,ab->ab",
    "all summed": "a,a->",
    "summed alone": "ab,c->ac",
    "an ellipsis": "...ab,...cb->...ac",
    "one tensor": "ab->ba",
    "three tensors": "ab,bc,cd->ad",
    "no arrow": "ab,bc",
}


def tensors(equation: str) -> list[Tensor]:
    """Draws the tensors of an equation; an ellipsis stands for nothing."""
    generator = torch.Generator().manual_seed(0)
    parts = equation.replace(" ", "").replace("...", "").partition("->")[0].split(",")
    sizes = [[SIZES[letter] for letter in part] for part in parts]
    return [torch.randn(size, generator=generator) for size in sizes]


@pytest.mark.parametrize("equation", PRODUCTS)
def test_a_product_is_one_matmul(equation: str) -> None:
    def function(*parts: Tensor) -> Tensor:
        return torch.einsum(equation, *parts)

    rewritten = checked(function, *tensors(equation), passes=PASSES, targets=TARGETS)
    assert rewritten.changes == {"einsum as matmul": 1}
    assert calls(rewritten)["aten.matmul"] == 1
    assert calls(rewritten)["aten.einsum"] == 0


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_none_stays(name: str) -> None:
    def function(*parts: Tensor) -> Tensor:
        return torch.einsum(OTHERS[name], *parts)

    rewritten = checked(function, *tensors(OTHERS[name]), passes=PASSES)
    assert rewritten.changes == {"einsum as matmul": 0}
    assert calls(rewritten)["aten.einsum"] == 1


def test_a_spread_axis_stays() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("abc,abd->acd", x, y)

    rewritten = rewrite(function, torch.randn(2, 3, 4), torch.randn(2, 1, 5), passes=PASSES)
    assert rewritten.changes == {"einsum as matmul": 0}


def test_attention_is_recognised_behind_it() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) * 0.5).softmax(-1)
        return torch.einsum("bhij,bhjd->bhid", weights, v)

    x = torch.randn(3, 2, 3, 7, 4, generator=torch.Generator().manual_seed(0))
    recognised = checked(function, *x.unbind(0), targets=TARGETS).recognised
    assert recognised == {"sized_attention": 1}
