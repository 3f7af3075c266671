"""EViT with the fused token once more: boolean masks of a fixed count choose, and keep the order.

On the weights of ``models.zoo.evit`` it answers the same.
"""

from __future__ import annotations

import torch
from models.zoo.evit_variant import Attentive
from models.zoo.vit import images, seeded
from torch import Tensor, nn


class ByMask(Attentive):
    """Marks what stays, and takes what is marked and what is not."""

    @staticmethod
    def shorten(h: Tensor, seen: Tensor, count: int) -> Tensor:
        """Keeps the ``count`` patches seen most and sums the others by what they were seen."""
        batch, _, width = h.shape
        stays = torch.zeros_like(seen, dtype=torch.bool)
        stays.scatter_(1, seen.topk(count, dim=1).indices, True)
        others = torch.masked_select(h[:, 1:], ~stays[..., None]).view(batch, -1, width)
        fused = (seen[~stays].view(batch, -1, 1) * others).sum(1, keepdim=True)
        with_class = torch.cat([torch.ones(batch, 1, dtype=torch.bool), stays], dim=1)
        return torch.cat([h[with_class].view(batch, count + 1, width), fused], dim=1)


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """70 % stay in blocks 1 and 3."""
    return ByMask(seeded(seed), {1: 0.7, 3: 0.7}).eval(), images()
