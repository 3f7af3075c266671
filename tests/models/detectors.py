"""A detector whose outputs have everything that makes one scale for all of them say nothing."""

from __future__ import annotations

import torch
from models.zoo.vit import WIDTH, seeded
from torch import Tensor, nn

KEPT, CLASSES, PIXELS = 12, 6, 480.0


class MaskedDetector(nn.Module):
    """Keeps the best patches of an image, some of which are padding.

    ``logits`` (B, 12, 6) hold the least number where a patch is padding; ``boxes`` (B, 12, 4) are
    in pixels; ``features`` (B, 12, 48) have a loud channel, a dead one, and rows of padding.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.vit = seeded(seed, depth=2)
        self.score, self.label = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, CLASSES)
        self.box = nn.Linear(WIDTH, 4)
        loudness = torch.ones(WIDTH)
        loudness[3], loudness[7] = 1e4, 1e-6
        self.register_buffer("loudness", loudness)

    def forward(self, pixel_values: Tensor, patch_mask: Tensor) -> dict[str, Tensor]:
        """Takes images (B, 3, 48, 48) and which patches are real, (B, 36) of 0 and 1."""
        least = torch.finfo(torch.float32).min
        tokens = self.vit.forward_features(pixel_values)[:, 1:]
        real = patch_mask > 0
        score = self.score(tokens)[..., 0].masked_fill(~real, -1e4)
        best = score.argsort(dim=1, descending=True, stable=True)[:, :KEPT]
        kept = tokens.gather(1, best[..., None].expand(-1, -1, WIDTH))
        padding = ~real.gather(1, best)[..., None]
        return {
            "logits": self.label(kept).masked_fill(padding, least),
            "boxes": self.box(kept).sigmoid() * PIXELS,
            "features": (kept * self.loudness).masked_fill(padding, 1e9),
        }


def masked_detector(batch: int = 1) -> tuple[nn.Module, dict[str, Tensor]]:
    """The detector and its example inputs, of whose patches some are padding."""
    draw = torch.Generator().manual_seed(3)
    mask = (torch.arange(36)[None] < torch.randint(8, 34, (batch, 1), generator=draw)).long()
    return MaskedDetector().eval(), {
        "pixel_values": torch.randn(batch, 3, 48, 48, generator=draw),
        "patch_mask": mask,
    }
