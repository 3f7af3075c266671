"""Token Pooling (Marin et al. 2021): weighted k-medoids over the patches, a few rounds of it.

A round assigns each patch to its nearest medoid; inside each cluster the patch that is nearest to
the others becomes the medoid, distances weighted by the attention that these receive. What stays
is the medoids themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from models.zoo.vit import Attention, Block, images, patch, seeded
from torch import Tensor, nn

Built = tuple[nn.Module, Tensor]


class ScoringAttention(Attention):
    """Returns beside x the attention that each token receives, (B, N)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.heads(x)
        attn = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.join(attn @ v), attn.mean(dim=(1, 2))


def k_medoids(x: Tensor, significance: Tensor, k: int, num_iters: int) -> Tensor:
    """Returns the positions (B, k) of medoids among tokens (B, N, C) of a significance (B, N)."""
    B, N, _ = x.shape
    dist = torch.cdist(x, x)
    weighted = dist * significance.unsqueeze(1)
    medoids = torch.topk(significance, k, dim=-1).indices
    for _ in range(num_iters):
        to_medoids = torch.gather(dist, 1, medoids.unsqueeze(-1).expand(B, k, N))
        assignment = to_medoids.argmin(dim=1)
        member = assignment.unsqueeze(1) == torch.arange(k).view(1, k, 1)
        cost = member.to(x.dtype) @ weighted.transpose(1, 2)
        medoids = cost.masked_fill(~member, float("inf")).argmin(dim=-1)
    return medoids


class PoolingBlock(Block):
    """Keeps the medoids of the patches between attention and MLP."""

    layer: int
    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        attended, received = self.attn(self.norm1(x))
        x = x + self.drop_path(attended)
        keep = self._info["keep"].get(self.layer)
        if keep is not None:
            patches = x[:, 1:]
            index = k_medoids(patches, received[:, 1:], keep, self._info["num_iters"])
            index = index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            x = torch.cat([x[:, :1], patches.gather(1, index)], dim=1)
        result: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return result


def build(seed: int = 0) -> Built:
    """36 patches become 16 medoids, then 8, by three rounds each."""
    model = seeded(seed)
    patch(model, {"keep": {1: 16, 2: 8}, "num_iters": 3}, PoolingBlock, ScoringAttention)
    return model, images()
