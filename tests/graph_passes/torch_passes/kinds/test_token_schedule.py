"""The number of tokens that each attention sees, fused or spelled out."""

from __future__ import annotations

import pytest
import torch
from helpers.graphs import rewrite, trace
from torch import Tensor, nn

from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.kinds.token_schedule import token_schedule


class Attention(nn.Module):
    """Attention of 9 tokens (2, 9, 8) over those that are left of them."""

    def __init__(self, left: int, fused: bool) -> None:
        super().__init__()
        self.left, self.fused = left, fused
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
        if self.fused:
            k, v = k[:, :, : self.left], v[:, :, : self.left]
            summed = torch.ops.tokexport.sized_attention(q, k, v, None, 0.5)
        else:
            shares = (q @ k.mT).softmax(-1)[..., : self.left]
            shares = shares / shares.sum(-1, keepdim=True)
            summed = shares @ v[:, :, : self.left]
        return x + summed.transpose(1, 2).reshape(2, 9, 8)


def test_attentions_are_counted_in_order_by_their_keys() -> None:
    ops.register()
    model = nn.Sequential(Attention(9, True), Attention(7, False), Attention(6, True))
    assert token_schedule(trace(model, torch.randn(2, 9, 8))) == (9, 7, 6)


class Spelled(nn.Module):
    """Attention of 9 tokens (2, 9, 8) to the first 7 of them, by other products."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
        if self.form == "einsum":
            shares = self.left(torch.einsum("bhid,bhjd->bhij", q, k))
            summed = torch.einsum("bhij,bhjd->bihd", shares, v[:, :, :7])
            return x + summed.reshape(2, 9, 8)
        q, k, v = (part.reshape(4, 9, 4) for part in (q, k, v))
        summed = torch.bmm(self.left(torch.bmm(q, k.mT)), v[:, :7])
        return x + summed.view(2, 2, 9, 4).transpose(1, 2).reshape(2, 9, 8)

    def left(self, logits: Tensor) -> Tensor:
        shares = logits.softmax(-1)[..., :7]
        return shares / shares.sum(-1, keepdim=True)


@pytest.mark.parametrize("form", ["einsum", "bmm"])
def test_other_products_are_counted_once_they_are_rewritten(form: str) -> None:
    ops.register()
    assert token_schedule(rewrite(Spelled(form), torch.randn(2, 9, 8)).program) == (7,)


def test_tokens_that_a_softmax_mixes_without_heads_are_no_attention() -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm((x @ x.mT).softmax(-1)[:, :3] * 2, x)

    assert token_schedule(rewrite(Pooled(), torch.randn(2, 9, 8)).program) == ()


def test_what_is_weighted_by_a_softmax_is_no_attention() -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * x.softmax(-1)
            return (x @ x.mT).mean(-1)

    assert token_schedule(trace(Gated(), torch.randn(2, 9, 8))) == ()
