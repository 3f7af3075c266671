"""ToMe in the ways its users switch it: the patch itself is ``models.tome_patched``.

Bolya et al. 2023. With and without proportional attention (off for models trained by MAE), with a
distillation token, with a schedule that falls, and with a plain mean in place of sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from models.tome_patched import MergingBlock, apply_patch, match
from models.zoo.vit import CLASSES, DEPTH, HEADS, IMAGE, PATCH, WIDTH, images
from torch import Tensor, nn

Built = tuple[nn.Module, Tensor]


def small_timm(seed: int, name: str = "vit_tiny_patch16_224") -> Any:
    """A timm model of the zoo's size, with random weights."""
    import timm

    torch.manual_seed(seed)
    return timm.create_model(
        name,
        pretrained=False,
        img_size=IMAGE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        num_heads=HEADS,
        depth=DEPTH,
        num_classes=CLASSES,
    ).eval()


def _merging(model: Any, r: Any, prop_attn: bool = True) -> Built:
    apply_patch(model, prop_attn)
    model.r = r
    return model, images()


def build(seed: int = 0) -> Built:
    """Four tokens merge in each of four blocks."""
    return _merging(small_timm(seed), 4)


def build_without_sizes_in_attention(seed: int = 0) -> Built:
    """The same with ``prop_attn`` off."""
    return _merging(small_timm(seed), 4, prop_attn=False)


def build_distilled(seed: int = 0) -> Built:
    """A model with a distillation token, which takes no other token in."""
    return _merging(small_timm(seed, "deit_tiny_distilled_patch16_224"), 4)


def build_falling(seed: int = 0) -> Built:
    """Merges 7, 5, 3 and 1: r = (4, -0.75)."""
    return _merging(small_timm(seed), (4, -0.75))


class MeanBlock(MergingBlock):
    """Merges by the mean of what meets at a token, and keeps no sizes."""

    def forward(self, x: Tensor) -> Tensor:
        attended, metric = self.attn(self.norm1(x), None)
        x = x + self.drop_path1(self.ls1(attended))
        r = self._tome_info["r"].pop(0)
        if r > 0:
            x = match(metric, r, self._tome_info["class_token"], False)(x, mode="mean")
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x


def build_mean(seed: int = 0) -> Built:
    """Plain means."""
    model, example = build(seed)
    for module in model.modules():
        if isinstance(module, MergingBlock):
            module.__class__ = MeanBlock
    return model, example
