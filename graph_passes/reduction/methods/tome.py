"""ToMe: the most similar pairs of even and odd tokens merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import Layer, Method, check, head_mean, option
from tokexport.graph_passes.reduction.schedule import at_layer
from tokexport.graph_passes.reduction.token_maps import Matching, even_and_odd, match_rows
from tokexport.graph_passes.reduction.tokens import Tokens


def match_even_and_odd(metric: Tensor, r: int, tokens: Tokens) -> Matching:
    """Matches even tokens to odd ones by the cosine of a normalised metric (B, N, D).

    Special tokens stay out of it. What is left of the even ones stays in index order where there is
    a special token, by descending score without one (the reference code's order).
    """
    others, a, b = even_and_odd(tokens.count, tokens.special)
    scores = metric[:, a] @ metric[:, b].transpose(-1, -2)
    order = "index" if tokens.special else "score"
    return match_rows(scores, r, order, tokens.x, others, a, b)


@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    """Bipartite soft matching between attention and MLP, size-weighted means."""

    name: ClassVar[str] = "tome"
    summary: ClassVar[str] = "merge the r most similar pairs by the keys' cosine"
    source: ClassVar[str] = "Bolya et al. 2023, Token Merging: Your ViT But Faster, section 3"

    r: int | tuple[int, ...] = option(8, "tokens that merge in each block, or one number for each")
    inflection: float = option(0.0, "r falls (-1), stays (0) or rises (1) with depth")
    prop_attn: bool = option(
        True, "add log(size) to the attention; false for models trained by MAE"
    )

    def __post_init__(self) -> None:
        """Refuses a schedule that goes below nothing."""
        smallest = min(self.r, default=0) if isinstance(self.r, tuple) else self.r
        check(smallest >= 0, f"r is {smallest}.", "Give 0 or more tokens.")
        check(abs(self.inflection) <= 1, f"inflection is {self.inflection}.", "Give -1 … 1.")
        check(
            self.inflection == 0 or not isinstance(self.r, tuple),
            "inflection bends one number r, and r is a list.",
            "Leave one of them out.",
        )

    def adds_sizes(self) -> bool:
        """Follows prop_attn."""
        return self.prop_attn

    def after_attention(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Merges; r is at most half of the patches."""
        r = int(at_layer(self.r, layer, self.inflection))
        r = min(r, (tokens.count - tokens.special) // 2)
        if r <= 0:
            return tokens
        return tokens.merged_by_size(match_even_and_odd(head_mean(attention.k), r, tokens))
