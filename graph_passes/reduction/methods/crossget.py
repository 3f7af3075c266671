"""CrossGET: what resembles others and says little to a learned cross token merges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokexport.graph_passes.ops.ops import bipartite_match, gather_tokens
from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import (
    Layer,
    Method,
    check,
    head_mean,
    inner_products,
    normalised,
    option,
)
from tokexport.graph_passes.reduction.schedule import at_layer
from tokexport.graph_passes.reduction.token_maps import Matching, ranking
from tokexport.graph_passes.reduction.tokens import Tokens


class CrossToken(nn.Module):
    """A learned token that scores the patches for another modality.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(width) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the cosine of each patch (B, T, C) to the token: (B, T)."""
        token = self.token / self.token.norm()
        cosine: Tensor = normalised(x) @ token
        return cosine


@dataclass(frozen=True, kw_only=True)
class CrossGET(Method):
    """Complete-graph matching between attention and MLP, guided by a trained cross token.

    The patches are sorted by their best similarity, and each may merge only into a later one, so
    that no two choose each other. The r of lowest cosine to the cross token minus best allowed
    similarity go, each into the most similar patch that stays; a group's weights are the softmax of
    its cosines to the cross token.
    """

    name: ClassVar[str] = "crossget"
    summary: ClassVar[str] = "merge what a trained cross token does not ask for"
    source: ClassVar[str] = (
        "Shi et al. 2024, CrossGET: Cross-Guided Ensemble of Tokens for Accelerating "
        "Vision-Language Transformers, section 3"
    )
    needs_training: ClassVar[bool] = True

    r: int | tuple[int, ...] = option(8, "tokens that merge in each block, or one number for each")

    def __post_init__(self) -> None:
        """Refuses a schedule that goes below nothing."""
        smallest = min(self.r, default=0) if isinstance(self.r, tuple) else self.r
        check(smallest >= 0, f"r is {smallest}.", "Give 0 or more tokens.")

    def trained(self, layer: Layer, width: int) -> nn.Module:
        """Makes the block's cross token."""
        return CrossToken(width)

    def after_attention(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Merges r patches, at most half of them."""
        assert layer.trained is not None
        special, count, x = tokens.special, tokens.count, tokens.x
        r = min(int(at_layer(self.r, layer)), (count - special) // 2)
        if r <= 0:
            return tokens
        metric = head_mean(attention.k)[:, special:]
        similarity = inner_products(metric)
        asked = layer.trained(x[:, special:])
        ranked = ranking(asked - _best_later(similarity), descending=False)
        src, rest = ranked[:, :r], ranked[:, r:].sort(dim=-1).values
        scores = gather_tokens(gather_tokens(similarity, src).transpose(1, 2), rest)
        match = bipartite_match(scores.transpose(1, 2), r, "index")
        others = slice(0, special)
        matching = Matching(count, x.shape[0], others, src + special, rest + special, *match)
        weight = torch.cat([torch.ones_like(x[:, :special, 0]), asked.exp()], dim=1)[..., None]
        return tokens.merged(
            matching, matching(x * weight) / matching(weight), matching(tokens.sizes)
        )


def _best_later(similarity: Tensor) -> Tensor:
    """Returns each patch's best similarity to those behind it, sorted by best similarity: (B, T).

    The last of the order has none: -1, the least there is.
    """
    itself = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
    masked = similarity.masked_fill(itself, -torch.inf)
    best = masked.amax(dim=-1)
    one, other = best[:, :, None], best[:, None, :]
    tied_later = torch.ones_like(itself).triu(1) & (one == other)
    later = (one > other) | tied_later
    return torch.where(later, similarity, -1.0).amax(dim=-1)
