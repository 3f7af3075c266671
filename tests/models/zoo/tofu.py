"""ToFu: token fusion (Kim et al. 2023): earlier layers prune, later ones merge by MLERP.

The matching is ToMe's, with a share of all tokens to keep; nothing tracks sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models.zoo.vit import Block, Vit, images, patch, seeded
from torch import Tensor, nn

Fuse = Callable[..., Tensor]


def bipartite_fusion(metric: Tensor, ratio: float) -> Fuse:
    """Matches metric (B, N, C) and returns what prunes or merges by it."""
    B, N, _ = metric.shape
    r = min(int(N - N * ratio), (N - 1) // 2)
    with torch.no_grad():
        metric = metric / metric.norm(dim=-1, keepdim=True)
        a, b = metric[..., ::2, :], metric[..., 1::2, :]
        scores = a @ b.transpose(-1, -2)
        scores[..., 0, :] = -torch.inf
        node_max, node_idx = scores.max(dim=-1)
        edge_idx = node_max.argsort(dim=-1, descending=True)[..., None]
        unm_idx = edge_idx[..., r:, :].sort(dim=1)[0]
        src_idx = edge_idx[..., :r, :]
        dst_idx = node_idx[..., None].gather(dim=-2, index=src_idx)

    def fuse(x: Tensor, how: str) -> Tensor:
        src, dst = x[..., ::2, :], x[..., 1::2, :]
        C = x.shape[-1]
        unm = src.gather(dim=-2, index=unm_idx.expand(B, src.shape[1] - r, C))
        if how == "prune":
            return torch.cat([unm, dst], dim=1)
        src = src.gather(dim=-2, index=src_idx.expand(B, r, C))
        return torch.cat([unm, mlerp(src, dst, dst_idx)], dim=1)

    return fuse


def mlerp(src: Tensor, dst: Tensor, dst_idx: Tensor) -> Tensor:
    """The mean of each group, scaled to the largest norm in it (the paper's form)."""
    index = dst_idx.expand_as(src)
    mean = dst.scatter_reduce(-2, index, src, reduce="mean")
    norms = dst.norm(dim=-1, keepdim=True)
    src_norms = src.norm(dim=-1, keepdim=True)
    largest = norms.scatter_reduce(-2, dst_idx, src_norms, reduce="amax")
    result: Tensor = mean / mean.norm(dim=-1, keepdim=True) * largest
    return result


class FusingBlock(Block):
    """Reduces between attention and MLP."""

    layer: int
    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.heads(self.norm1(x))
        attn = (q @ k.transpose(-2, -1) * self.attn.scale).softmax(dim=-1)
        x = x + self.drop_path(self.attn.join(attn @ v))
        fuse = bipartite_fusion(k.mean(1), self._info["ratio"])
        x = fuse(x, how="prune" if self.layer <= self._info["depth"] // 2 else "merge")
        result: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return result


def apply_tofu(model: Vit, ratio: float) -> None:
    """Patches a ViT in place."""
    patch(model, {"ratio": ratio, "depth": len(model.blocks)}, FusingBlock)


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Keeps 90 % of the tokens in each block."""
    model = seeded(seed)
    apply_tofu(model, 0.9)
    return model, images()
