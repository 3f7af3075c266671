"""A constant mask that lets everything through goes, and no other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import checked
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as fused

from tokexport.graph_passes.torch_passes.canonicalize.drop_full_masks import DropFullMasks

Mask = Callable[[Tensor], Tensor]
FULL: dict[str, Mask] = {
    "arange": lambda q: (torch.arange(5) >= 0).expand(2, 3, 5, 5),
    "ones": lambda q: torch.ones(5, 5, dtype=torch.bool),
    "or": lambda q: torch.ones(5, 5).tril().bool() | torch.ones(5, 5).triu().bool(),
}
OTHERS: dict[str, Mask] = {
    "one is closed": lambda q: (torch.arange(5) < 4)[None],
    "causal": lambda q: torch.ones(5, 5).tril().bool(),
    "of an input": lambda q: (q.sum((-1, 1)) < torch.inf)[:, None, None],
    "of floats": lambda q: torch.zeros(5, 5),
    "drawn": lambda q: torch.rand(5, 5) < 2,
}


@pytest.mark.parametrize("name", [*FULL, *OTHERS])
def test_masks(name: str) -> None:
    mask = {**FULL, **OTHERS}[name]

    def function(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return fused(q, k, k, mask(q)), fused(q, k, k, attn_mask=mask(q), scale=0.3)

    given = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    rewritten = checked(function, *given, passes=(DropFullMasks(),))
    assert rewritten.changes["drop full masks"] == (2 if name in FULL else 0)
