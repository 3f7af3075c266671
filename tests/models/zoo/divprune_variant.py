"""DivPrune once more: all images at once, and the nearest chosen token is carried along.

On the weights of ``models.zoo.divprune`` it answers the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo import divprune
from models.zoo.divprune import DivPrune
from models.zoo.vit import images
from torch import Tensor, nn


def spread_out(h: Tensor, count: int) -> Tensor:
    """Returns positions (B, count) among tokens (B, N, C), in the tokens' order."""
    unit = F.normalize(h, dim=2, eps=0.0)
    apart = torch.rsub(torch.bmm(unit, unit.mT), 1)
    picks = [apart.sort(dim=2).values[:, :, 1].argmax(dim=1, keepdim=True)]
    nearest = torch.full_like(apart[:, 0], torch.inf)
    while len(picks) < count:
        row = torch.take_along_dim(apart, picks[-1].unsqueeze(2), dim=1).squeeze(1)
        nearest = torch.minimum(nearest, row)
        picks.append(nearest.max(dim=1, keepdim=True).indices)
    return torch.cat(picks, dim=1).sort(dim=1).values


class Spread(nn.Module):
    """Runs the parts of a pruned tower."""

    def __init__(self, inner: DivPrune) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns (B, tokens, PROJECTED)."""
        tower = self.inner.vision_tower
        h = tower.embed(pixels)
        for layer in tower.blocks[:-1]:
            h = layer(h)
        h = h.narrow(1, 1, h.size(1) - 1)
        picked = spread_out(h, round(h.size(1) * self.inner.ratio))
        rows = h[torch.arange(h.size(0)).unsqueeze(1), picked]
        result: Tensor = self.inner.mm_projector(rows)
        return result


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Nine of 36 patches."""
    inner, _ = divprune.build(seed)
    assert isinstance(inner, DivPrune)
    return Spread(inner).eval(), images()
