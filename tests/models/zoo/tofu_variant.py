"""ToFu once more: pruning is one selection from all tokens, and groups are made by a one-hot mask.

On the weights of ``models.zoo.tofu`` it answers the same: the mean of a group is only scaled, so
its sum does as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo.vit import Attention, Block, Vit, images, seeded
from torch import Tensor, nn


def pair_up(features: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns which sources stay (B, Na - r), which go (B, r) and where to (B, r)."""
    unit = features * features.square().sum(2, keepdim=True).rsqrt()
    affinity = torch.bmm(unit[:, 0::2], unit[:, 1::2].mT)
    affinity = F.pad(affinity[:, 1:], (0, 0, 1, 0), value=float("-inf"))
    strength, nearest = torch.max(affinity, 2)
    ranked = torch.sort(strength, dim=1, descending=True).indices
    going, staying = ranked.split((count, ranked.size(1) - count), dim=1)
    return staying.sort(1)[0], going, torch.take_along_dim(nearest, going, 1)


def pruned(h: Tensor, staying: Tensor) -> Tensor:
    """Keeps every odd token of (B, N, C) and the evens that stay."""
    odds = torch.arange(1, h.size(1), 2).expand(h.size(0), -1)
    kept = torch.cat((staying * 2, odds), dim=1)
    return h[torch.arange(h.size(0)).unsqueeze(1), kept]


def merged(h: Tensor, staying: Tensor, going: Tensor, whereto: Tensor) -> Tensor:
    """Gives each group the direction of its sum and the largest norm in it."""
    batch = torch.arange(h.size(0)).unsqueeze(1)
    left, right = h[:, 0::2], h[:, 1::2]
    moved = left[batch, going]
    member = whereto.unsqueeze(1) == torch.arange(right.size(1)).view(1, -1, 1)
    summed = torch.baddbmm(right, member.to(h.dtype), moved)
    lengths = torch.linalg.vector_norm(moved, dim=2).unsqueeze(1)
    longest = torch.where(member, lengths, torch.zeros(())).amax(dim=2)
    longest = torch.maximum(longest, torch.linalg.vector_norm(right, dim=2))
    groups = longest.unsqueeze(2) * F.normalize(summed, dim=2, eps=0.0)
    return torch.cat((left[batch, staying], groups), dim=1)


class Fusing(nn.Module):
    """Runs the parts of a ViT, with a reduction between attention and MLP."""

    def __init__(self, vit: Vit, keep: float) -> None:
        super().__init__()
        self.vit, self.keep = vit, keep

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the logits."""
        h = self.vit.embed(pixels)
        for number, layer in enumerate(self.vit.blocks):
            assert isinstance(layer, Block)
            mixed, keys = self.attend(layer.attn, layer.norm1(h))
            h = mixed + h
            plan = pair_up(keys, int(h.size(1) - h.size(1) * self.keep))
            h = merged(h, *plan) if 2 * number > len(self.vit.blocks) else pruned(h, plan[0])
            h = layer.mlp(layer.norm2(h)) + h
        result: Tensor = self.vit.head(self.vit.norm(h).select(1, 0))
        return result

    @staticmethod
    def attend(mha: Attention, h: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the attention's result and the head mean of the keys, both (B, N, …)."""
        query, key, value = mha.heads(h)
        return mha.join(F.scaled_dot_product_attention(query, key, value)), key.mean(dim=1)


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Keeps 90 % of the tokens in each block."""
    return Fusing(seeded(seed), 0.9).eval(), images()
