"""DiffRate once more: sorting by topk and indexing, merging by index_put that accumulates.

On the weights of ``models.zoo.diffrate`` it answers the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo.vit import Attention, Block, Vit, images, seeded
from torch import Tensor, nn


def absorb(rows: Tensor, keep: int, size: Tensor) -> tuple[Tensor, Tensor]:
    """Merges the rows behind the first ``keep`` into these: plain means, and weighted sizes."""
    images_, _, _ = rows.shape
    front, back = rows.split([keep, rows.size(1) - keep], dim=1)
    likeness = torch.bmm(F.normalize(back, dim=2), F.normalize(front, dim=2).mT)
    likeness = torch.cat((torch.full_like(likeness[:, :, :1], -torch.inf), likeness[:, :, 1:]), 2)
    closest = likeness.topk(1, dim=2)
    place = (torch.arange(images_)[:, None], closest.indices.squeeze(2))
    terms = torch.ones_like(size[:, :keep, 0])
    terms = terms.index_put(place, torch.ones_like(size[:, keep:, 0]), accumulate=True)
    mean = front.index_put(place, back, accumulate=True) / terms.unsqueeze(2)
    grown = size[:, keep:] * closest.values
    return mean, size[:, :keep].index_put(place, grown, accumulate=True)


class Compressed(nn.Module):
    """Runs the parts of a ViT by lists of how many tokens pass each block's two gates."""

    def __init__(self, vit: Vit, pass_first: list[int], pass_second: list[int]) -> None:
        super().__init__()
        self.vit = vit
        self.gates = list(zip(pass_first, pass_second, strict=True))

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the logits."""
        h = self.vit.embed(pixels)
        size = h.new_ones(h.size(0), h.size(1), 1)
        for number, (layer, (first, second)) in enumerate(
            zip(self.vit.blocks, self.gates, strict=True)
        ):
            assert isinstance(layer, Block)
            mixed, seen = self.look(layer.attn, layer.norm1(h), size)
            h = mixed + h
            if number:
                first = min(first, h.size(1))
                best = seen.topk(first - 1, dim=1).indices.add(1)
                rows = torch.arange(h.size(0)).unsqueeze(1)
                h = torch.cat((h[:, :1], h[rows, best]), dim=1)
                size = torch.cat((size[:, :1], size[rows, best]), dim=1)
                if second < first:
                    h, size = absorb(h, second, size)
            h = layer.mlp(layer.norm2(h)) + h
        result: Tensor = self.vit.head(self.vit.norm(h)[:, 0])
        return result

    @staticmethod
    def look(mha: Attention, h: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the attention's result and what the class token saw, (B, N - 1)."""
        query, key, value = mha.heads(h)
        logits = query.matmul(key.mT).mul(mha.scale) + size.mT.log().unsqueeze(1)
        shares = logits.softmax(3)
        return mha.join(shares.matmul(value)), shares[:, :, 0].mean(1)[:, 1:]


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The schedule of ``models.zoo.diffrate``."""
    return Compressed(seeded(seed), [37, 33, 34, 26], [37, 30, 26, 24]).eval(), images()
