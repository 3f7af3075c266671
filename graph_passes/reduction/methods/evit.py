"""EViT: the patches that the class token attends to stay, the rest becomes one token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from tokexport.graph_passes.ops.ops import gather_tokens
from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import Layer, Method, check_shares, option
from tokexport.graph_passes.reduction.schedule import at_layer, at_quarters
from tokexport.graph_passes.reduction.token_maps import Selection, behind_special, ranking
from tokexport.graph_passes.reduction.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class EViT(Method):
    """Keeps the most attended patches between attention and MLP, in that order.

    With ``fuse`` the rest become one token, their sum weighted by attention, which comes last and
    competes later like a patch.
    """

    name: ClassVar[str] = "evit"
    summary: ClassVar[str] = "keep the patches the class token attends to, fuse the rest"
    source: ClassVar[str] = (
        "Liang et al. 2022, Not All Patches Are What You Need: Expediting Vision Transformers via "
        "Token Reorganizations, section 3"
    )
    strength: ClassVar[str] = "keep"
    proportional: ClassVar[bool] = False
    needs_class_token: ClassVar[bool] = True

    keep: float | tuple[float, ...] = option(0.7, "the share of the patches that stay")
    fuse: bool = option(True, "make one token of the rest")

    def __post_init__(self) -> None:
        """Refuses shares outside 0 … 1."""
        check_shares("keep", self.keep)

    def acts_in(self, layer: Layer) -> bool:
        """Acts at a quarter, a half and three quarters of the depth, where no blocks are named."""
        return at_quarters(self.layers, layer)

    def after_attention(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Keeps ⌈T·keep⌉ of the T patches."""
        special, count = tokens.special, tokens.count
        kept = math.ceil(at_layer(self.keep, layer) * (count - special))
        if kept >= count - special:
            return tokens
        attended = attention.of_class_token
        ranked = ranking(attended[:, special:]) + special
        stay, rest = behind_special(special, ranked[:, :kept]), ranked[:, kept:]
        if not self.fuse:
            return tokens.kept(Selection(stay, count))
        weights = gather_tokens(attended[..., None], rest)
        fused = (gather_tokens(tokens.x, rest) * weights).sum(dim=1, keepdim=True)
        x = torch.cat([gather_tokens(tokens.x, stay), fused], dim=1)
        # The fused token stands where the most attended of the rest stood.
        return tokens.kept(Selection(torch.cat([stay, rest[:, :1]], dim=1), count), x)
