"""The smallest timm ViT that still merges, for tests that compile often."""

from __future__ import annotations

import torch
from models.tome_patched import patched
from torch import nn


def tiny_tome(r: int = 3, depth: int = 2, image: int = 48, **kwargs: object) -> nn.Module:
    """A patched ViT of width 48 on images (B, 3, image, image) in patches of 8 pixels."""
    model = patched(
        "vit_tiny_patch16_224",
        r=r,
        depth=depth,
        img_size=image,
        patch_size=8,
        embed_dim=48,
        num_heads=3,
        num_classes=10,
        **kwargs,
    )
    return model


def image(batch: int = 1, size: int = 48) -> torch.Tensor:
    """An example input of the tiny ViT."""
    return torch.zeros(batch, 3, size, size)
