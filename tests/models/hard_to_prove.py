"""Models whose outputs hide an error from one scale for all, or whose code names its types."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.tiny_vit import tiny_tome
from torch import Tensor, nn

WIDTH = 48
LOWEST = torch.finfo(torch.float32).min


class Detector(nn.Module):
    """Scores tokens against prompts, and fills those of padded prompts with the lowest float32."""

    def __init__(self, resized: bool = False, fill: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit = tiny_tome()
        self.vit.reset_classifier(0, global_pool="")
        self.prompts = nn.Parameter(torch.randn(8, WIDTH))
        self.resized, self.fill = resized, fill

    def forward(self, image: Tensor, prompt_mask: Tensor) -> Tensor:
        """Takes images (B, 3, 48, 48), or of 64 where it resizes, and a mask (B, 8)."""
        if self.resized:
            image = F.interpolate(image, (48, 48), mode="bicubic", antialias=True)
        tokens = F.normalize(self.vit(image), dim=-1)
        logits = tokens @ F.normalize(self.prompts, dim=-1).T * 10
        return logits.masked_fill(prompt_mask[:, None] == 0, LOWEST) if self.fill else logits


class NamesItsTypes(nn.Module):
    """Pools tokens far from zero in float32 by name, where four digits cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = tiny_tome()
        self.vit.reset_classifier(0, global_pool="")
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Takes images (B, 3, 48, 48)."""
        x = self.vit(image) + 1000
        weight = torch.sigmoid((x - 1000).mean(-1, keepdim=True).to(torch.float32))
        groups = torch.zeros(len(x), 8, WIDTH, dtype=torch.float32)
        index = (torch.arange(x.shape[1]) % 8)[None, :, None].expand_as(x)
        groups = groups.scatter_add(1, index, (x * weight).float())
        logits: Tensor = self.head(groups.sum(1) / weight.sum(1) - 1000)
        return logits


class HasARegion(nn.Module):
    """Computes its blocks in bfloat16, as autocast does."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = tiny_tome(r=0)
        self.vit.reset_classifier(0)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Takes images (B, 3, 48, 48)."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.vit(image)
        logits: Tensor = self.head(x.float())
        return logits


class PaddedAndLoud(nn.Module):
    """Gives tokens of which the last is padding at 1e9, with one channel at a million."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = tiny_tome()
        self.vit.reset_classifier(0, global_pool="")
        gain = torch.ones(WIDTH)
        gain[5] = 1e6
        self.register_buffer("gain", gain)

    def forward(self, image: Tensor) -> Tensor:
        """Takes images (B, 3, 48, 48)."""
        tokens = self.vit(image) * self.gain
        padding = tokens[:, :1] * 1e9
        return torch.cat([tokens, padding], dim=1)


class WholeNumbers(nn.Module):
    """Splits numbers by division, whose quotients and rests are exact at any size."""

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes ids (B, N)."""
        return ids // 7, ids % 7, torch.div(ids, 7, rounding_mode="trunc")
