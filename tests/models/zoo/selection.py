"""Plain selection of patches: by the class token's attention, at random, and every second one.

The attention is torch's fused one here, so the class token's probabilities are computed once more
for its own row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from models.zoo.vit import PATCHES, Attention, Block, Vit, images, patch, seeded
from torch import Tensor, nn


class FusedAttention(Attention):
    """scaled_dot_product_attention; returns the head mean of the class token's row as well."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.heads(x)
        out = F.scaled_dot_product_attention(q, k, v)
        row = torch.softmax(q[:, :, :1] @ k.mT * self.scale, dim=-1)
        return self.join(out), row.squeeze(2).mean(1)


class TopKBlock(Block):
    """Keeps the most attended patches, in their own order, before the MLP."""

    layer: int
    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        out, row = self.attn(self.norm1(x))
        x = x + out
        keep = self._info["keep"].get(self.layer)
        if keep is not None:
            best = row[:, 1:].topk(keep, dim=-1).indices.sort(dim=-1).values + 1
            batch_idx = torch.arange(x.shape[0])[:, None]
            x = torch.cat((x[:, :1], x[batch_idx, best]), dim=1)
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


def build_topk(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """25, then 17 patches stay."""
    model = seeded(seed)
    patch(model, {"keep": {1: 25, 2: 17}}, TopKBlock, FusedAttention)
    return model, images()


class FixedVit(Vit):
    """Keeps patches at positions known beforehand: at random behind block 0, every second later."""

    kept: Tensor

    def __init__(self, keep: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        kept = torch.randperm(PATCHES, generator=generator)[:keep].sort().values
        self.register_buffer("kept", torch.cat([torch.zeros(1, dtype=torch.long), kept + 1]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == 0:
                x = torch.index_select(x, 1, self.kept)
            elif i == 2:
                cls, patches = x[:, :1], x[:, 1:]
                x = torch.cat([cls, patches[:, ::2]], dim=1)
        result: Tensor = self.head(self.norm(x)[:, 0])
        return result


def build_fixed(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """24 patches at random, then every second of them."""
    torch.manual_seed(seed)
    return FixedVit(24, seed).eval(), images()
