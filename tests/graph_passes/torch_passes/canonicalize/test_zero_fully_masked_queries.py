"""A boolean attention mask is exact for queries that see no key, in every runtime."""

from __future__ import annotations

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked, emitted, lowered, rewrite, run_onnx
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tokexport.graph_passes.torch_passes.canonicalize.zero_fully_masked_queries import (
    ZeroFullyMaskedQueries,
)

PASSES = (ZeroFullyMaskedQueries(),)


def halting(x: Tensor) -> Tensor:
    """Attention of the tokens (B, 7, 4) whose first channel is positive, among themselves."""
    alive = x[:, :, 0] > 0
    mask = alive[:, None, :, None] & alive[:, None, None, :]
    heads = x[:, None]
    return scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)


@pytest.mark.parametrize("target", [*TARGETS, "trt"])
def test_a_query_that_sees_nothing_gets_zeros(target: str) -> None:
    x = torch.randn(3, 7, 4)
    x[..., 0] = 1.0
    model = lowered(emitted(rewrite(halting, x)), target)
    x[0, 2:4, 0] = -1.0
    x[1, :, 0] = -1.0
    found = run_onnx(model, x, target="ort" if target == "trt" else target)[0]
    torch.testing.assert_close(found, halting(x), rtol=0.0, atol=1e-6)
    assert found[1].abs().max() == 0.0


def test_the_answer_is_a_where() -> None:
    rewritten = checked(halting, torch.randn(3, 7, 4), passes=PASSES)
    assert calls(rewritten)["aten.where"] == 1
    assert calls(rewritten)["aten.scaled_dot_product_attention"] == 1


def test_where_every_query_sees_something_it_stays() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        causal = torch.arange(5)[:, None] >= torch.arange(5)
        return (
            scaled_dot_product_attention(x, x, x, attn_mask=x @ x.mT),
            scaled_dot_product_attention(x, x, x, attn_mask=causal),
            scaled_dot_product_attention(x, x, x),
        )

    rewritten = checked(function, torch.randn(2, 2, 5, 4), passes=PASSES)
    assert calls(rewritten)["aten.where"] == 0


def test_a_constant_mask_that_blinds_a_query_is_guarded() -> None:
    def function(x: Tensor) -> Tensor:
        earlier = torch.arange(5)[:, None] > torch.arange(5)
        return scaled_dot_product_attention(x, x, x, attn_mask=earlier)

    rewritten = checked(function, torch.randn(2, 2, 5, 4), targets=TARGETS)
    assert calls(rewritten)["aten.where"] == 1
