"""Super tokens (Huang et al. 2022) in place of the patches of a plain ViT.

What ``models.super_tokens`` samples inside its attention stays here: the patches' grid becomes a
smaller grid of super tokens, each the mean of what is softly assigned to it.
"""

from __future__ import annotations

import torch
from models.super_tokens import sample
from models.zoo.vit import Vit, images
from torch import Tensor, nn


class SampledVit(Vit):
    """Samples super tokens of ``window`` by ``window`` patches behind the first block."""

    def __init__(self, window: int, rounds: int) -> None:
        super().__init__()
        self.window, self.rounds = window, rounds

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        side = int(self.num_patches**0.5)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 0:
                cls, patches = x[:, :1], x[:, 1:]
                grid = patches.transpose(1, 2).reshape(*patches.shape[::2], side, side)
                centres, _ = sample(grid, self.window, self.rounds)
                x = torch.cat([cls, centres.flatten(2).transpose(1, 2)], dim=1)
        result: Tensor = self.head(self.norm(x)[:, 0])
        return result


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Six by six patches become three by three super tokens in two rounds."""
    torch.manual_seed(seed)
    return SampledVit(2, 2).eval(), images()
