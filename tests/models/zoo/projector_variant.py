"""VTC-CLS and AIM once more: scores add up along the way, and means are sums over counts.

On the weights of ``models.zoo.projector`` both answer the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo import projector
from models.zoo.projector import Aim, VtcCls
from models.zoo.vit import Block, attend_by_einsum, images
from torch import Tensor, nn


def look(layer: Block, h: Tensor) -> tuple[Tensor, Tensor]:
    """Runs a block; returns its attention probabilities (B, H, N, N) too."""
    mixed, shares, _ = attend_by_einsum(layer.attn, layer.norm1(h))
    h = torch.add(h, mixed)
    return torch.add(h, layer.mlp(layer.norm2(h))), shares


class MostSeen(nn.Module):
    """Adds up what the class token sees, and takes the patches from the flattened batch."""

    def __init__(self, inner: VtcCls) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns (B, tokens, PROJECTED)."""
        inner, tower = self.inner, self.inner.vision_tower
        h = tower.embed(pixels)
        last = len(tower.blocks) - 1
        score = h.new_zeros(h.size(0), h.size(1) - 1)
        features = h
        for number, layer in enumerate(tower.blocks):
            assert isinstance(layer, Block)
            features = h
            h, shares = look(layer, h)
            if inner.start <= number < last:
                score = score + shares[:, :, 0, 1:].mean(dim=1)
        order = torch.argsort(score, dim=1, descending=True)
        order = torch.sort(order.narrow(1, 0, inner.tokens), dim=1).values
        start = torch.arange(h.size(0)).mul(h.size(1)).unsqueeze(1)
        flat = torch.index_select(features.flatten(0, 1), 0, (order + 1 + start).flatten())
        result: Tensor = inner.mm_projector(flat.view(h.size(0), inner.tokens, -1))
        return result


def halve(h: Tensor) -> Tensor:
    """One round of matching on the features themselves: (B, N, C) → (B, N - N // 2, C)."""
    batch, length, _ = h.shape
    left, right = h[:, 0::2], h[:, 1::2]
    affinity = torch.bmm(F.normalize(left, dim=2, eps=0.0), F.normalize(right, dim=2, eps=0.0).mT)
    strength, nearest = affinity.topk(1, dim=2)
    ranked = torch.argsort(strength.squeeze(2), dim=1, descending=True)
    count = length // 2
    going = ranked[:, :count]
    start = torch.arange(batch).unsqueeze(1) * right.size(1)
    target = torch.take_along_dim(nearest.squeeze(2), going, 1).add(start).flatten()
    moved = torch.take_along_dim(left, going.unsqueeze(2), 1).flatten(0, 1)
    total = right.flatten(0, 1).index_add(0, target, moved)
    members = torch.ones(total.size(0), 1).index_add(0, target, torch.ones(target.size(0), 1))
    groups = (total / members).unflatten(0, (batch, -1))
    if ranked.size(1) == count:
        return groups
    return torch.cat((torch.take_along_dim(left, ranked[:, count:, None], 1), groups), dim=1)


class Halved(nn.Module):
    """Halves what the projector makes of the last features but one."""

    def __init__(self, inner: Aim) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns about a quarter of the features."""
        tower = self.inner.vision_tower
        h = tower.embed(pixels)
        before = h
        for layer in tower.blocks:
            assert isinstance(layer, Block)
            before = h
            h = look(layer, h)[0]
        x: Tensor = self.inner.mm_projector(before[:, 1 + self.inner.cut :])
        for _ in range(self.inner.rounds):
            x = halve(x)
        return x


def build_vtc_cls(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Nine of 36 patches, by the layers from the second on."""
    model, _ = projector.build_vtc_cls(seed)
    assert isinstance(model, VtcCls)
    return MostSeen(model).eval(), images()


def build_aim(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """36 features become 9; every even one merges, so none is left over."""
    model, _ = projector.build_aim(seed)
    assert isinstance(model, Aim)
    return Halved(model).eval(), images()


def build_aim_odd(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """35 features become 18, then 9."""
    model, _ = projector.build_aim_odd(seed)
    assert isinstance(model, Aim)
    return Halved(model).eval(), images()
