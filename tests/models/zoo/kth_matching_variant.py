"""k-th matching once more: split by a mask, and summed by ``scatter_add``.

On the weights of ``models.zoo.kth_matching`` it answers the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo.vit import Block, Vit, attend_by_einsum, images, seeded
from torch import Tensor, nn


class EveryKth(nn.Module):
    """Merges between the attention and the MLP of the blocks that have a step above one."""

    def __init__(self, vit: Vit, steps: tuple[int, ...]) -> None:
        super().__init__()
        self.vit, self.steps = vit, steps

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the logits."""
        h = self.vit.embed(pixels)
        mass = torch.ones(h.size(0), h.size(1) - 1, 1)
        for layer, step in zip(self.vit.blocks, self.steps, strict=True):
            assert isinstance(layer, Block)
            mixed, _, keys = attend_by_einsum(layer.attn, layer.norm1(h))
            h = torch.add(mixed, h)
            if step > 1:
                cls, patches = torch.tensor_split(h, (1,), dim=1)
                heavy = torch.cat((mass.mul(patches), mass), dim=2)
                heavy = self.collect(heavy, torch.mean(keys, 1)[:, 1:], step)
                patches, mass = heavy.split((heavy.size(2) - 1, 1), dim=2)
                h = torch.cat((cls, torch.div(patches, mass)), dim=1)
            h = torch.add(layer.mlp(layer.norm2(h)), h)
        result: Tensor = self.vit.head(self.vit.norm(h).select(1, 0))
        return result

    @staticmethod
    def collect(rows: Tensor, keys: Tensor, step: int) -> Tensor:
        """Adds (B, N, C) to every ``step``-th of themselves: (B, N / step, C)."""
        unit = F.normalize(keys, dim=2, eps=0.0)
        goes = torch.arange(1, rows.size(1) + 1) % step != 0
        nearest = torch.bmm(unit[:, goes], unit[:, step - 1 :: step].mT).argmax(dim=2)
        target = nearest.unsqueeze(2).repeat(1, 1, rows.size(2))
        return rows[:, step - 1 :: step].scatter_add(1, target, rows[:, goes])


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """One in two stays in block 1, one in three in block 2."""
    return EveryKth(seeded(seed), (1, 2, 3, 1)).eval(), images()
