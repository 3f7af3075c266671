"""Plain selection once more: patches are taken by a one-hot product, by gather and by reshaping.

On the weights of ``models.zoo.selection`` both answer the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo import selection
from models.zoo.selection import FixedVit
from models.zoo.vit import Attention, Block, Vit, images, seeded
from torch import Tensor, nn


class Attended(nn.Module):
    """Runs the parts of a ViT; some blocks keep the patches that the class token sees most."""

    def __init__(self, vit: Vit, counts: dict[int, int]) -> None:
        super().__init__()
        self.vit, self.counts = vit, counts

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the logits."""
        h = self.vit.embed(pixels)
        for number, layer in enumerate(self.vit.blocks):
            assert isinstance(layer, Block)
            mixed, seen = self.look(layer.attn, layer.norm1(h))
            h = torch.add(mixed, h)
            if number in self.counts:
                h = self.keep(h, seen, self.counts[number])
            h = layer.mlp(layer.norm2(h)).add(h)
        result: Tensor = self.vit.head(self.vit.norm(h).select(1, 0))
        return result

    @staticmethod
    def look(mha: Attention, h: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the attention's result and what the class token saw in the patches."""
        query, key, value = mha.heads(h)
        logits = torch.matmul(query, key.permute(0, 1, 3, 2)).mul(mha.scale)
        shares = F.softmax(logits, dim=-1)
        return mha.join(torch.matmul(shares, value)), shares.select(2, 0).mean(dim=1)[:, 1:]

    @staticmethod
    def keep(h: Tensor, seen: Tensor, count: int) -> Tensor:
        """Takes the ``count`` patches seen most, in their own order."""
        best = torch.argsort(seen, dim=1, descending=True)[:, :count]
        best, _ = torch.sort(best, dim=1)
        cls, patches = h.split((1, h.size(1) - 1), dim=1)
        picked = torch.bmm(F.one_hot(best, patches.size(1)).to(h.dtype), patches)
        return torch.cat((cls, picked), dim=1)


def build_topk(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """25, then 17 patches stay."""
    return Attended(seeded(seed), {1: 25, 2: 17}).eval(), images()


class Thinned(nn.Module):
    """Runs the parts of a ViT; its buffer says which patches stay behind block 0."""

    def __init__(self, vit: FixedVit) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the logits."""
        first, *others = self.vit.blocks
        h = first(self.vit.embed(pixels))
        h = h.gather(1, self.vit.kept.view(1, -1, 1).expand(h.size(0), -1, h.size(2)))
        for number, block in enumerate(others, start=1):
            h = block(h)
            if number == 2:
                pairs = h[:, 1:].unflatten(1, (-1, 2))
                h = torch.cat((h[:, 0].unsqueeze(1), pairs.select(2, 0)), dim=1)
        result: Tensor = self.vit.head(self.vit.norm(h)[:, 0, :])
        return result


def build_fixed(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """24 patches at random, then every second of them."""
    vit, _ = selection.build_fixed(seed)
    assert isinstance(vit, FixedVit)
    return Thinned(vit).eval(), images()
