"""PYRA: ToMe whose sources are modulated by trained weights before they merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokexport.graph_passes.ops.ops import gather_tokens, scatter_tokens
from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import Layer, check, head_mean
from tokexport.graph_passes.reduction.methods.tome import ToMe, match_even_and_odd
from tokexport.graph_passes.reduction.schedule import at_layer
from tokexport.graph_passes.reduction.tokens import Tokens


class Modulation(nn.Module):
    """Changes the r sources of a merge by what they and their destinations are.

    Args:
        r: Tokens that merge.
        width: C.
    """

    def __init__(self, r: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.a = nn.Parameter(torch.randn(r, 1) * r**-0.5)
        self.b = nn.Parameter(torch.zeros(1, width))

    def forward(self, src: Tensor, dst: Tensor) -> Tensor:
        """Takes and returns (B, r, C)."""
        both = self.norm(src + dst)
        by_channel = 2 * (self.a.transpose(0, 1) @ both).sigmoid()
        by_pair = 2 * (both @ self.b.transpose(0, 1)).sigmoid() - 1
        modulated: Tensor = src + src * by_channel * by_pair
        return modulated


@dataclass(frozen=True, kw_only=True)
class PYRA(ToMe):
    """ToMe between attention and MLP; w = 2σ(aᵀu) by channel and 2σ(u bᵀ) - 1 by pair."""

    name: ClassVar[str] = "pyra"
    summary: ClassVar[str] = "tome with trained modulation of what merges"
    source: ClassVar[str] = (
        "Xiong et al. 2024, PYRA: Parallel Yielding Re-Activation for Training-Inference Efficient "
        "Task Adaptation, section 3"
    )
    needs_training: ClassVar[bool] = True

    def trained(self, layer: Layer, width: int) -> nn.Module | None:
        """Makes the block's vectors a (r, 1) and b (1, C); b begins at zero: ToMe itself."""
        r = int(at_layer(self.r, layer, self.inflection))
        return Modulation(r, width) if r > 0 else None

    def after_attention(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Merges the modulated sources."""
        r = int(at_layer(self.r, layer, self.inflection))
        if r <= 0:
            return tokens
        assert layer.trained is not None
        half = (tokens.count - tokens.special) // 2
        check(
            r <= half,
            f"r is {r} in block {layer.index}, where at most {half} tokens can merge.",
            "The trained weights fit one r only: give the r they were trained with.",
        )
        matching = match_even_and_odd(head_mean(attention.k), r, tokens)
        a, b = tokens.x[:, matching.a], tokens.x[:, matching.b]
        src, dst = gather_tokens(a, matching.src), gather_tokens(b, matching.dst)
        a = scatter_tokens(a, matching.src, layer.trained(src, dst), "none", True)
        x = tokens.x.clone()
        x[:, matching.a] = a
        size = matching(tokens.sizes)
        return tokens.merged(matching, matching(x * tokens.sizes) / size, size)
