"""The number of tokens that each attention sees, fused or spelled out."""

from __future__ import annotations

import torch
from helpers.graphs import trace
from torch import Tensor, nn

from tokexport.graph_passes import ops
from tokexport.graph_passes.torch_passes.token_schedule import token_schedule


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


def test_what_is_weighted_by_a_softmax_is_no_attention() -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * x.softmax(-1)
            return (x @ x.mT).mean(-1)

    assert token_schedule(trace(Gated(), torch.randn(2, 9, 8))) == ()
