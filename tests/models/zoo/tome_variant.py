"""ToMe once more, with other names, another order of statements and other spellings.

What ``models.tome_patched`` does by slices, norm division, gather and scatter_reduce is done here
by reshape, ``F.normalize``, einsum, ``masked_fill``, topk, ``take_along_dim`` and ``scatter_add``;
on the same weights both answer the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from models.zoo.tome import Built, small_timm
from models.zoo.vit import images
from torch import Tensor, nn


def pair_up(features: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns which sources stay (B, Na - r), which go (B, r) and where to (B, r)."""
    unit = F.normalize(features, dim=2, eps=0.0)
    left = torch.index_select(unit, 1, torch.arange(0, unit.size(1), 2))
    right = torch.index_select(unit, 1, torch.arange(1, unit.size(1), 2))
    affinity = torch.einsum("bic,bjc->bij", left, right)
    first = torch.arange(left.size(1)).view(1, -1, 1) == 0
    affinity = affinity.masked_fill(first, -torch.inf)
    nearest = affinity.argmax(dim=2)
    strength = torch.amax(affinity, dim=2)
    everyone = torch.topk(strength, strength.size(1), dim=1).indices
    going, staying = torch.split(everyone, [count, everyone.size(1) - count], dim=1)
    whereto = torch.take_along_dim(nearest, going, dim=1)
    return torch.sort(staying, dim=1).values, going, whereto


def fold(rows: Tensor, plan: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Adds the sources of (B, N, C) to their destinations: (B, N - r, C)."""
    staying, going, whereto = plan
    left, right = rows[:, 0::2], rows[:, 1::2]
    moved = torch.take_along_dim(left, going[:, :, None], dim=1)
    target = whereto.unsqueeze(2).repeat(1, 1, rows.size(2))
    right = torch.scatter_add(right, 1, target, moved)
    return torch.cat([torch.take_along_dim(left, staying[:, :, None], 1), right], dim=1)


class Shrinking(nn.Module):
    """Runs the parts of a timm ViT, with merging between attention and MLP."""

    def __init__(self, vit: Any, per_layer: list[int]) -> None:
        super().__init__()
        self.vit = vit
        self.per_layer = per_layer

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the logits."""
        net = self.vit
        h = net._pos_embed(net.patch_embed(pixels))
        weight: Tensor | None = None
        for layer, count in zip(net.blocks, self.per_layer, strict=True):
            h, keys = self.attend(layer, h, weight)
            if weight is None:
                weight = h.new_ones(h.size(0), h.size(1), 1)
            plan = pair_up(keys, count)
            total = fold(weight, plan)
            h = torch.div(fold(torch.mul(weight, h), plan), total)
            weight = total
            h = layer.mlp(layer.norm2(h)) + h
        result: Tensor = net.head(net.norm(h)[:, 0])
        return result

    def attend(self, layer: Any, h: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the tokens behind the attention's residual and the head mean of the keys."""
        mha = layer.attn
        b, n, c = h.shape
        parts = mha.qkv(layer.norm1(h)).view(b, n, 3, mha.num_heads, -1)
        query, key, value = (parts[:, :, i].transpose(1, 2).flatten(0, 1) for i in range(3))
        logits = torch.bmm(query, key.transpose(1, 2)) / query.size(-1) ** 0.5
        logits = logits.unflatten(0, (b, -1))
        if weight is not None:
            logits = torch.log(weight).reshape(b, 1, 1, n) + logits
        probabilities = F.softmax(logits, dim=3).flatten(0, 1)
        mixed = torch.bmm(probabilities, value).unflatten(0, (b, -1))
        mixed = mixed.permute(0, 2, 1, 3).flatten(2)
        return h + mha.proj(mixed), key.unflatten(0, (b, -1)).mean(dim=1)


def build(seed: int = 0) -> Built:
    """Four tokens merge in each of four blocks."""
    return Shrinking(small_timm(seed), [4, 4, 4, 4]).eval(), images()
