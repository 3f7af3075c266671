"""DivPrune: the patches that are most unlike each other stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokexport.graph_passes.ops.ops import gather_tokens
from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import (
    Layer,
    Method,
    check_shares,
    inner_products,
    normalised,
    option,
)
from tokexport.graph_passes.reduction.schedule import at_encoder_end
from tokexport.graph_passes.reduction.token_maps import Selection, behind_special
from tokexport.graph_passes.reduction.tokens import Tokens


def most_diverse(x: Tensor, count: int) -> Tensor:
    """Chooses patches x (B, T, C) greedily by the largest least distance: (B, count), by index.

    Distance is 1 - cosine. The first choice is the patch whose nearest other is farthest.
    """
    distance = 1 - inner_products(normalised(x))
    nearest_other = distance.topk(2, dim=-1, largest=False).values[..., 1]
    chosen = [nearest_other.argmax(dim=-1, keepdim=True)]
    least = gather_tokens(distance, chosen[0])[:, 0]
    positions = torch.arange(x.shape[1], device=x.device)
    for _ in range(count - 1):
        least = least.masked_fill(positions == chosen[-1], -torch.inf)
        chosen.append(least.argmax(dim=-1, keepdim=True))
        least = torch.minimum(least, gather_tokens(distance, chosen[-1])[:, 0])
    return torch.cat(chosen, dim=1).sort(dim=1).values


@dataclass(frozen=True, kw_only=True)
class DivPrune(Method):
    """Keeps the most diverse patches behind a block, in their own order."""

    name: ClassVar[str] = "divprune"
    summary: ClassVar[str] = "keep the patches that are most unlike each other"
    source: ClassVar[str] = (
        "Alvar et al. 2025, DivPrune: Diversity-based Visual Token Pruning for Large Multimodal "
        "Models, section 3"
    )
    strength: ClassVar[str] = "keep"
    proportional: ClassVar[bool] = False

    keep: float = option(0.098, "the share of the patches that stay")

    def __post_init__(self) -> None:
        """Refuses a share outside 0 … 1."""
        check_shares("keep", self.keep)

    def acts_in(self, layer: Layer) -> bool:
        """Acts behind the second-to-last block, where no others are named."""
        return at_encoder_end(self.layers, layer)

    def after_mlp(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Keeps round(T·keep) of the T patches, at least one."""
        special, count = tokens.special, tokens.count
        kept = max(round(self.keep * (count - special)), 1)
        if kept >= count - special:
            return tokens
        index = most_diverse(tokens.x[:, special:], kept) + special
        return tokens.kept(Selection(behind_special(special, index), count))
