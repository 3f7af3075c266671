"""Fused attention of any rank gets four axes; one that has them stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked, rewrite
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as fused

from tokexport.graph_passes.torch_passes.canonicalize.attention_to_rank4 import AttentionToRank4

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
FLATTEN = (AttentionToRank4(),)


def inputs(outside: tuple[int, ...], mask: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Returns q (…, 5, 4), k (…, 7, 4), v (…, 7, 6) and a mask."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((*outside, 5, 4), (*outside, 7, 4), (*outside, 7, 6), mask)
    return tuple(torch.randn(size, generator=generator) for size in sizes)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention without a mask, and a use of the mask."""
    return fused(q, k, v, scale=0.3) + mask.sum()


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention with a mask that is added."""
    return fused(q, k, v, attn_mask=mask)


def of_booleans(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention with a mask that lets through; each query sees the first key."""
    let_through = (mask > 0) | (torch.arange(7) == 0)
    return fused(q, k, v, attn_mask=let_through)


CASES: dict[str, tuple[Attend, tuple[int, ...], tuple[int, ...]]] = {
    "windows": (plain, (2, 4, 3), (1,)),
    "six axes": (plain, (2, 2, 4, 3), (1,)),
    "one head": (plain, (2,), (1,)),
    "one head of one image": (plain, (), (1,)),
    "one mask for all": (masked, (2, 4, 3), (5, 7)),
    "a mask of heads": (masked, (2, 4, 3), (3, 5, 7)),
    "a mask of windows": (masked, (2, 4, 3), (4, 1, 5, 7)),
    "a mask of images": (masked, (2, 4, 3), (2, 1, 1, 5, 7)),
    "a mask of keys": (masked, (2, 4, 3), (2, 4, 1, 1, 7)),
    "a spread mask": (masked, (2, 4, 3), (1, 1, 1, 1, 7)),
    "a mask of one head": (masked, (2,), (2, 5, 7)),
    "booleans": (of_booleans, (2, 4, 3), (4, 1, 5, 7)),
}


@pytest.mark.parametrize("name", CASES)
def test_it_has_four_axes_and_answers_the_same(name: str) -> None:
    function, outside, mask = CASES[name]
    rewritten = checked(function, *inputs(outside, mask), passes=FLATTEN, targets=TARGETS)
    assert rewritten.changes == {"attention to rank 4": 1}
    (attention,) = (
        node
        for node in rewritten.program.graph.nodes
        if node.target is torch.ops.aten.scaled_dot_product_attention.default
    )
    assert [part.meta["val"].ndim for part in attention.args[:3]] == [4, 4, 4]


def test_causal_attention_stays_causal() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return fused(q, k, v, is_causal=True)

    q, k, v, _ = inputs((2, 4, 3), ())
    assert checked(function, q, k, v, passes=FLATTEN).changes == {"attention to rank 4": 1}


def test_a_mask_that_is_one_for_all_is_not_spread() -> None:
    rewritten = rewrite(masked, *inputs((2, 4, 3), (3, 5, 7)), passes=FLATTEN)
    assert calls(rewritten)["aten.expand"] == 0
    assert calls(rewritten)["aten.scaled_dot_product_attention"] == 1


@pytest.mark.parametrize("name", ["windows", "one head", "a mask of keys"])
def test_it_is_recognised_behind_it(name: str) -> None:
    function, outside, mask = CASES[name]
    recognised = checked(function, *inputs(outside, mask), targets=TARGETS).recognised
    assert recognised == {"sized_attention": 1}


def test_what_has_four_axes_stays() -> None:
    rewritten = rewrite(plain, *inputs((2, 3), (1,)), passes=FLATTEN)
    assert rewritten.changes == {"attention to rank 4": 0}


def test_what_spreads_over_windows_stays() -> None:
    q, k, v, mask = inputs((2, 4, 3), (1,))
    rewritten = rewrite(plain, q, k[:, :1], v[:, :1], mask, passes=FLATTEN)
    assert rewritten.changes == {"attention to rank 4": 0}
