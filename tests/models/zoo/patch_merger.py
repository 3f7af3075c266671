"""Patch Merger (Renggli et al. 2022): learned queries take their share of every token.

The merged tokens are softmax(queries · normᵀ) · norm over all patches; the class token stays apart.
"""

from __future__ import annotations

from typing import Any

import torch
from models.zoo.vit import Vit, images
from torch import Tensor, nn


class PatchMerger(nn.Module):
    """(B, N, C) → (B, num_tokens_out, C)."""

    def __init__(self, dim: int, num_tokens_out: int) -> None:
        super().__init__()
        self.scale = dim**-0.5
        self.pre_norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(num_tokens_out, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_norm(x)
        sim = torch.matmul(self.queries, x.transpose(-1, -2)) * self.scale
        attn = sim.softmax(dim=-1)
        return torch.matmul(attn, x)


class MergerVit(Vit):
    """A ViT with a merger behind one of its blocks."""

    def __init__(self, patch_merge_layer: int, num_tokens_out: int, **options: Any) -> None:
        super().__init__(**options)
        self.patch_merge_layer = patch_merge_layer
        self.patch_merger = PatchMerger(self.head.in_features, num_tokens_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == self.patch_merge_layer:
                x = torch.cat((x[:, :1], self.patch_merger(x[:, 1:])), dim=1)
        result: Tensor = self.head(self.norm(x)[:, 0])
        return result


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """36 patches become 8 tokens behind block 1."""
    torch.manual_seed(seed)
    return MergerVit(1, 8).eval(), images()
