"""DPC-KNN once more: distances by broadcasting, sorts for top-k, and means by a one-hot product.

On the weights of ``models.zoo.dpc_knn`` it answers the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo.dpc_knn import NEIGHBOURS
from models.zoo.vit import Block, Vit, images, seeded
from torch import Tensor, nn


def peaks(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns all distances (B, N, N) of points, and the positions of the centres (B, count)."""
    apart = points.unsqueeze(2) - points.unsqueeze(1)
    apart = torch.linalg.vector_norm(apart, dim=3).div(points.size(2) ** 0.5)
    nearest = torch.sort(apart, dim=2).values.narrow(2, 0, NEIGHBOURS)
    density = torch.exp(nearest.pow(2).sum(2).div(-NEIGHBOURS))
    lower = density.unsqueeze(2) >= density.unsqueeze(1)
    widest = apart.amax(dim=(1, 2), keepdim=True)
    gap = torch.where(lower, widest, apart).amin(dim=2)
    ranking = torch.argsort(torch.mul(density, gap), dim=1, descending=True)
    return apart, ranking[:, :count]


def condense(points: Tensor, count: int) -> Tensor:
    """Takes the means of the clusters: (B, N, C) → (B, count, C)."""
    apart, centres = peaks(points, count)
    own = torch.take_along_dim(apart, centres.unsqueeze(1), dim=2)
    joined = torch.min(own, dim=2).indices
    joined = joined.scatter(1, centres, torch.arange(count).repeat(points.size(0), 1))
    member = F.one_hot(joined, count).to(points.dtype)
    total = torch.bmm(member.transpose(1, 2), points)
    return total / member.sum(dim=1).unsqueeze(-1)


class Clustered(nn.Module):
    """Clusters between the attention and the MLP of every second block."""

    def __init__(self, vit: Vit) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the logits."""
        h = self.vit.embed(pixels)
        for number, layer in enumerate(self.vit.blocks):
            assert isinstance(layer, Block)
            h = torch.add(layer.attn(layer.norm1(h)), h)
            if number % 2:
                cls, points = h.split((1, h.size(1) - 1), dim=1)
                h = torch.cat((cls, condense(points, points.size(1) // 2)), dim=1)
            h = torch.add(layer.mlp(layer.norm2(h)), h)
        result: Tensor = self.vit.head(self.vit.norm(h).select(1, 0))
        return result


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """36 patches become 18 clusters, then 9."""
    return Clustered(seeded(seed)).eval(), images()
