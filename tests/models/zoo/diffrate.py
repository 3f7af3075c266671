"""DiffRate (Chen et al. 2023) with a learned schedule: prune the least attended, then merge.

Every block but the first sorts the patches by the class token's attention, keeps the first P, and
merges those behind the first M into the best of these. The learned lists need not fall: P and M are
clamped to the tokens there are. Both count the class token.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from models.zoo.vit import Attention, Block, Vit, images, patch, seeded
from torch import Tensor, nn

SCHEDULE = '{"prune_kept": [37, 33, 34, 26], "merge_kept": [37, 30, 26, 24]}'


class DiffRateAttention(Attention):
    """Returns the class token's attention to the patches, (B, N - 1), beside x."""

    def forward(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = self.heads(x)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        if size is not None:
            attn = attn + size.log()[:, None, None, :, 0]
        attn = self.attn_drop(attn.softmax(dim=-1))
        return self.join(attn @ v), attn[:, :, 0, 1:].mean(dim=1)


def sort_by_attention(x: Tensor, size: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Brings the class token first and the patches behind it by descending score."""
    B, _, C = x.shape
    order = torch.argsort(score, dim=-1, descending=True) + 1
    order = torch.cat([torch.zeros(B, 1, dtype=order.dtype), order], dim=-1)
    x = torch.gather(x, 1, order.unsqueeze(-1).expand(-1, -1, C))
    return x, torch.gather(size, 1, order.unsqueeze(-1))


def merge_behind(x: Tensor, size: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Merges the tokens behind the first ``kept`` into these, as plain means."""
    C = x.shape[-1]
    with torch.no_grad():
        metric = x / x.norm(dim=-1, keepdim=True)
        scores = metric[:, kept:] @ metric[:, :kept].transpose(-1, -2)
        scores[..., :, 0] = float("-inf")
        node_max, node_idx = scores.max(dim=-1)
    dst_idx = node_idx[..., None]
    src, dst = x[:, kept:], x[:, :kept]
    x = dst.scatter_reduce(1, dst_idx.expand(-1, -1, C), src, reduce="mean")
    grown = size[:, kept:] * node_max[..., None]
    return x, size[:, :kept].scatter_reduce(1, dst_idx, grown, reduce="sum")


class DiffRateBlock(Block):
    """Sorts, prunes and merges between attention and MLP."""

    layer: int
    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        size = self._info["size"]
        x_attn, score = self.attn(self.norm1(x), size)
        x = x + self.drop_path(x_attn)
        if size is None:
            size = torch.ones_like(x[..., :1])
        if self.layer > 0:
            x, size = sort_by_attention(x, size, score)
            pruned = min(self._info["prune_kept"][self.layer], x.shape[1])
            x, size = x[:, :pruned], size[:, :pruned]
            kept = min(self._info["merge_kept"][self.layer], pruned)
            if kept < pruned:
                x, size = merge_behind(x, size, kept)
        self._info["size"] = size
        result: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return result


class DiffRateVit(Vit):
    """Clears the shared sizes and reports its multiply-accumulates beside the logits."""

    _info: dict[str, Any]

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        self._info["size"] = None
        logits = super().forward(x)
        C, flops, N = self.head.in_features, 0.0, self.pos_embed.shape[1]
        for merged in self._info["merge_kept"]:
            flops += 4 * N * C**2 + 2 * N**2 * C
            N = min(N, merged)
            flops += 4 * N * C**2
        return logits, flops


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A schedule from JSON whose pruning list rises once."""
    model = seeded(seed)
    patch(model, json.loads(SCHEDULE), DiffRateBlock, DiffRateAttention)
    model.__class__ = DiffRateVit
    return model, images()
