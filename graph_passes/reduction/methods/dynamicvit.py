"""DynamicViT: a small trained predictor picks the patches that stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import Block, Layer, Method, check_shares, option
from tokexport.graph_passes.reduction.schedule import at_quarters
from tokexport.graph_passes.reduction.token_maps import Selection, behind_special, ranking
from tokexport.graph_passes.reduction.tokens import Tokens


class Predictor(nn.Module):
    """Scores patches by their own and their mean features: (B, T, C) → (B, T), larger is better.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(width, half),
            nn.GELU(),
            nn.Linear(half, quarter),
            nn.GELU(),
            nn.Linear(quarter, 2),
            nn.LogSoftmax(dim=-1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the log-probability of being kept."""
        features = self.in_conv(x)
        half = features.shape[-1] // 2
        overall = features[..., half:].mean(dim=1, keepdim=True)
        both = torch.cat([features[..., :half], overall.expand_as(features[..., half:])], dim=-1)
        scores: Tensor = self.out_conv(both)[..., 0]
        return scores


@dataclass(frozen=True, kw_only=True)
class DynamicViT(Method):
    """Keeps the patches of the highest score before some blocks, in score order."""

    name: ClassVar[str] = "dynamicvit"
    summary: ClassVar[str] = "keep the patches that a trained predictor picks"
    source: ClassVar[str] = (
        "Rao et al. 2021, DynamicViT: Efficient Vision Transformers with Dynamic Token "
        "Sparsification, section 3"
    )
    strength: ClassVar[str] = "keep"
    proportional: ClassVar[bool] = False
    needs_training: ClassVar[bool] = True

    keep: float = option(0.7, "the share that stays each time, of the patches there were at first")

    def __post_init__(self) -> None:
        """Refuses a share outside 0 … 1."""
        check_shares("keep", self.keep)

    def acts_in(self, layer: Layer) -> bool:
        """Acts at a quarter, a half and three quarters of the depth, where no blocks are named."""
        return at_quarters(self.layers, layer)

    def trained(self, layer: Layer, width: int) -> nn.Module:
        """Makes the block's predictor."""
        return Predictor(width)

    def before_attention(
        self, layer: Layer, tokens: Tokens, block: Block
    ) -> tuple[Tokens, Attention]:
        """Keeps ⌊T0·keepᵏ⌋ of the patches at the k-th time, at least one."""
        assert layer.trained is not None
        special, count = tokens.special, tokens.count
        times = sum(self.acts_in(Layer(index, layer.depth)) for index in range(layer.index + 1))
        kept = max(int((tokens.began - special) * self.keep**times), 1)
        if kept >= count - special:
            return tokens, block.attention(tokens)
        scores = layer.trained(tokens.x[:, special:])
        ranked = ranking(scores)[:, :kept] + special
        tokens = tokens.kept(Selection(behind_special(special, ranked), count))
        return tokens, block.attention(tokens)
