"""EViT with the fused token once more: one ranking is split, and the rest are summed by a product.

On the weights of ``models.zoo.evit`` it answers the same.
"""

from __future__ import annotations

import torch
from models.zoo.vit import Block, Vit, attend_by_einsum, images, seeded
from torch import Tensor, nn


class Attentive(nn.Module):
    """Runs the parts of a ViT; some blocks shorten the list of patches."""

    def __init__(self, vit: Vit, share: dict[int, float]) -> None:
        super().__init__()
        self.vit, self.share = vit, share

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the logits."""
        h = self.vit.embed(pixels)
        for number, layer in enumerate(self.vit.blocks):
            assert isinstance(layer, Block)
            mixed, shares, _ = attend_by_einsum(layer.attn, layer.norm1(h))
            h = torch.add(h, mixed)
            if number in self.share:
                patches = h.size(1) - 1
                seen = shares.mean(1).select(1, 0).narrow(1, 1, patches)
                h = self.shorten(h, seen, -int(-patches * self.share[number] // 1))
            h = torch.add(layer.mlp(layer.norm2(h)), h)
        result: Tensor = self.vit.head(self.vit.norm(h)[:, 0, :])
        return result

    @staticmethod
    def shorten(h: Tensor, seen: Tensor, count: int) -> Tensor:
        """Keeps the ``count`` patches seen most and sums the others by what they were seen."""
        value, order = seen.sort(dim=1, descending=True)
        patches = h[:, 1:].take_along_dim(order.unsqueeze(dim=2), dim=1)
        kept, others = torch.tensor_split(patches, [count], dim=1)
        fused = torch.bmm(value[:, count:].unsqueeze(1), others)
        return torch.cat((h[:, :1], kept, fused), 1)


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """70 % stay in blocks 1 and 3."""
    return Attentive(seeded(seed), {1: 0.7, 3: 0.7}).eval(), images()
