"""Patch Merger once more: the softmax is written out, over tokens that lie along the first axis.

On the weights of ``models.zoo.patch_merger`` it answers the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo import patch_merger
from models.zoo.patch_merger import MergerVit, PatchMerger
from models.zoo.vit import images
from torch import Tensor, nn


def summarise(merger: PatchMerger, tokens: Tensor) -> Tensor:
    """Takes (B, N, C), returns (B, M, C)."""
    ln, wanted = merger.pre_norm, merger.queries.mul(merger.scale)
    tokens = F.layer_norm(tokens, ln.normalized_shape, ln.weight, ln.bias, ln.eps)
    affinity = F.linear(tokens, wanted)
    share = torch.exp(affinity - affinity.amax(dim=1, keepdim=True))
    share = share / share.sum(dim=1, keepdim=True)
    return torch.einsum("bnm,bnc->bmc", share, tokens)


class Summarised(nn.Module):
    """Runs the parts of a ViT with a merger."""

    def __init__(self, vit: MergerVit) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the logits."""
        net = self.vit
        h = net.embed(pixels)
        early, late = net.patch_merge_layer + 1, len(net.blocks)
        for layer in net.blocks[:early]:
            h = layer(h)
        cls, patches = torch.split(h, [1, h.size(1) - 1], dim=1)
        h = torch.cat((cls, summarise(net.patch_merger, patches)), dim=1)
        for layer in net.blocks[early:late]:
            h = layer(h)
        result: Tensor = net.head(net.norm(h).select(1, 0))
        return result


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """36 patches become 8 tokens behind block 1."""
    vit, _ = patch_merger.build(seed)
    assert isinstance(vit, MergerVit)
    return Summarised(vit).eval(), images()
