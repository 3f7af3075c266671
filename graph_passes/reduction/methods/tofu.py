"""ToFu: early blocks prune what matches, late blocks merge it and keep its norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import (
    Layer,
    Method,
    check,
    check_shares,
    head_mean,
    option,
)
from tokexport.graph_passes.reduction.methods.tome import match_even_and_odd
from tokexport.graph_passes.reduction.schedule import at_layer
from tokexport.graph_passes.reduction.token_maps import Matching, Selection
from tokexport.graph_passes.reduction.tokens import Tokens

NORMS = ("paper", "code")


@dataclass(frozen=True, kw_only=True)
class ToFu(Method):
    """ToMe's matching between attention and MLP, with a share of all tokens to keep.

    Blocks up to the middle drop the sources, later ones merge by MLERP: the mean of a group, scaled
    to the largest norm in it. ``norm="code"`` divides by the destination's own norm, as the
    published code does, where the paper divides by the mean's.
    """

    name: ClassVar[str] = "tofu"
    summary: ClassVar[str] = "prune early, merge late and keep the norm"
    source: ClassVar[str] = (
        "Kim et al. 2024, Token Fusion: Bridging the Gap between Token Pruning and Token Merging, "
        "section 3"
    )
    strength: ClassVar[str] = "keep"
    proportional: ClassVar[bool] = False

    keep: float | tuple[float, ...] = option(0.9, "the share of all tokens that each block keeps")
    norm: str = option("paper", "what a group's mean is divided by: paper or code")

    def __post_init__(self) -> None:
        """Refuses shares outside 0 … 1, and unknown norms."""
        check_shares("keep", self.keep)
        check(self.norm in NORMS, f"norm is '{self.norm}'.", f"Give {' or '.join(NORMS)}.")

    def after_attention(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Prunes or merges ⌊N - N·keep⌋ of the N tokens, at most half of the patches."""
        count = tokens.count
        r = int(count - count * at_layer(self.keep, layer))
        r = min(r, (count - tokens.special) // 2)
        if r <= 0:
            return tokens
        matching = match_even_and_odd(head_mean(attention.k), r, tokens)
        if layer.index <= layer.depth // 2:
            stay = Selection(matching.sources(), count)
            return tokens.kept(stay, matching.pruned(tokens.x))
        return tokens.merged(matching, self._mlerp(matching, tokens.x), None)

    def _mlerp(self, matching: Matching, x: Tensor) -> Tensor:
        """Merges x (B, N, C) by the mean and gives it the largest norm of its group."""
        mean = matching(x, "mean")
        norms = x.norm(dim=-1, keepdim=True)
        own = mean.norm(dim=-1, keepdim=True) if self.norm == "paper" else matching.pruned(norms)
        first = mean.shape[1] - matching.dst_rows
        scaled = mean[:, first:] / own[:, first:] * matching(norms, "amax")[:, first:]
        return torch.cat([mean[:, :first], scaled], dim=1)
