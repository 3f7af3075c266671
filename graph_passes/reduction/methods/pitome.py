"""PiToMe: tokens in crowded places merge, lonely ones are protected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from tokexport.graph_passes.ops.ops import gather_tokens
from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import (
    Layer,
    Method,
    check,
    check_shares,
    head_mean,
    option,
)
from tokexport.graph_passes.reduction.schedule import at_layer
from tokexport.graph_passes.reduction.token_maps import (
    Matching,
    Rows,
    behind_special,
    match_rows,
    ranking,
)
from tokexport.graph_passes.reduction.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class PiToMe(Method):
    """Merges between attention and MLP by an energy over all pairs of keys.

    In the first half of the blocks all patches, sorted by energy, are split alternately and the r
    best pairs merge; in the second half only the 2r of highest energy may, and r of them do.
    """

    name: ClassVar[str] = "pitome"
    summary: ClassVar[str] = "merge tokens in crowded places, protect lonely ones"
    source: ClassVar[str] = (
        "Tran et al. 2024, Accelerating Transformers with Spectrum-Preserving Token Merging, "
        "section 3"
    )
    strength: ClassVar[str] = "keep"
    proportional: ClassVar[bool] = False

    keep: float | tuple[float, ...] = option(0.9, "the share of the patches that each block keeps")
    margin: float = option(0.75, "similarity above which tokens crowd, in the first block")
    alpha: float = option(1.0, "how much less than the margin counts")

    def __post_init__(self) -> None:
        """Refuses shares, margins and factors out of range."""
        check_shares("keep", self.keep)
        check(abs(self.margin) <= 1, f"margin is {self.margin}.", "Give a cosine: -1 … 1.")
        check(self.alpha >= 0, f"alpha is {self.alpha}.", "Give 0 or more.")

    def after_attention(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Merges ⌊T - T·keep⌋ of the T patches."""
        special = tokens.special
        patches = tokens.count - special
        r = min(int(patches - patches * at_layer(self.keep, layer)), patches // 2)
        if r <= 0:
            return tokens
        metric = head_mean(attention.k)[:, special:]
        similarity = metric @ metric.transpose(-1, -2)
        margin = self.margin * (1 - layer.index / layer.depth)
        energy = F.elu(similarity - margin, alpha=self.alpha).mean(dim=-1)
        ranked = ranking(energy)
        crowded = ranked if layer.index < layer.depth // 2 else ranked[:, : 2 * r]
        protected = ranked[:, crowded.shape[1] :]
        return tokens.merged_by_size(_match(tokens, similarity, crowded, protected, r))


def _match(
    tokens: Tokens, similarity: Tensor, crowded: Tensor, protected: Tensor, r: int
) -> Matching:
    """Splits the crowded patches alternately and matches them by similarity (B, T, T)."""
    special = tokens.special
    a, b = crowded[:, ::2], crowded[:, 1::2]
    rows = gather_tokens(similarity, a)
    scores = gather_tokens(rows.transpose(1, 2), b).transpose(1, 2)
    others: Rows = slice(0, special)
    if protected.shape[1]:
        others = behind_special(special, protected + special)
    return match_rows(scores, r, "score", tokens.x, others, a + special, b + special)
