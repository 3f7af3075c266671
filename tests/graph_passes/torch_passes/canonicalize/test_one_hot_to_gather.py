"""A product with a one-hot matrix is a gather or a scatter of rows; any other stays a product."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor
from torch.nn.functional import one_hot

Product = Callable[[Tensor, Tensor], Tensor]


def positions(x: Tensor) -> Tensor:
    """Returns three positions below 4 for each image, one of them twice: (2, 3)."""
    nearest = x.sum(-1).argsort(1)[:, :3].clamp(max=3)
    return torch.cat([nearest[:, :2], nearest[:, :1]], 1)


#: Each takes x (2, 4, 5) and index (2, 3).
GATHERS: dict[str, Product] = {
    "one_hot": lambda x, i: one_hot(i, 4).float() @ x,
    "type_as": lambda x, i: one_hot(i, 4).type_as(x) @ x,
    "many casts": lambda x, i: one_hot(i, 4).bool().to(x.device).double().float() @ x,
    "comparison": lambda x, i: (i[..., None] == torch.arange(4)).to(x.dtype) @ x,
    "comparison, turned": lambda x, i: (torch.arange(4)[:, None] == i[:, None]).float().mT @ x,
    "einsum": lambda x, i: torch.einsum("bkn,bnc->bkc", one_hot(i, 4).float(), x),
}
#: Each takes x (2, 3, 5) and index (2, 3) into four rows.
SCATTERS: dict[str, Product] = {
    "one_hot": lambda x, i: one_hot(i, 4).float().transpose(1, 2) @ x,
    "type_as": lambda x, i: one_hot(i, 4).type_as(x).permute(0, 2, 1) @ x,
    "type_as, einsum": lambda x, i: torch.einsum("bkn,bkc->bnc", one_hot(i, 4).type_as(x), x),
    "comparison": lambda x, i: (torch.arange(4)[None, :, None] == i[:, None]).float() @ x,
    "comparison, turned": lambda x, i: (
        (i[..., None] == torch.arange(4)).permute(0, 2, 1).float() @ x
    ),
}


@pytest.mark.parametrize("name", GATHERS)
def test_a_gather(name: str) -> None:
    rewritten = checked(
        lambda x: GATHERS[name](x, positions(x)), torch.randn(2, 4, 5), targets=TARGETS
    )
    assert calls(rewritten)["tokexport.gather_tokens"] == 1
    assert calls(rewritten)["aten.matmul"] == 0


@pytest.mark.parametrize("name", SCATTERS)
def test_a_scatter(name: str) -> None:
    def function(x: Tensor) -> Tensor:
        return SCATTERS[name](x[:, :3], positions(x))

    rewritten = checked(function, torch.randn(2, 4, 5), targets=TARGETS)
    assert calls(rewritten)["tokexport.scatter_tokens"] == 1
    assert calls(rewritten)["aten.matmul"] == 0


def test_a_merge_by_one_hot() -> None:
    def function(x: Tensor) -> Tensor:
        a, b = x[:, ::2], x[:, 1::2]
        best, partner = (a @ b.mT).max(-1)
        order = best.argsort(-1, descending=True)
        kept, src = order[:, 2:].sort(1)[0], order[:, :2]
        dst = partner.gather(1, src)
        rest = one_hot(kept, a.shape[1]).float() @ a
        merged = b + one_hot(dst, b.shape[1]).float().mT @ (one_hot(src, a.shape[1]).float() @ a)
        return torch.cat([rest, merged], 1)

    rewritten = checked(function, torch.randn(2, 11, 5), targets=TARGETS)
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 1}


OTHERS: dict[str, Product] = {
    "weights": lambda x, i: one_hot(i, 4).float() * 0.5 @ x,
    "soft": lambda x, i: x.softmax(-1)[:, :3, :4] @ x,
    "more rows than the index has": lambda x, i: one_hot(i + 1, 5).float()[..., :4] @ x,
    "steps of two": lambda x, i: (i[..., None] == torch.arange(0, 8, 2)).float() @ x,
    "a comparison of both": lambda x, i: (i[..., None] == i[:, None]).float() @ x[:, :3],
    "past the end": lambda x, i: ((i + 1)[..., None] == torch.arange(4)).float() @ x,
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_product_stays(name: str) -> None:
    rewritten = checked(
        lambda x: OTHERS[name](x, positions(x)), torch.randn(2, 4, 5), targets=("ort",)
    )
    assert calls(rewritten)["aten.matmul"] == 1
