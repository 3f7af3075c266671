"""MCTF: pairs that are similar, hold little information and stand for few patches merge."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokexport.graph_passes.ops.ops import bipartite_match, gather_tokens
from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import Block, Layer, Method, check, normalised, option
from tokexport.graph_passes.reduction.schedule import at_layer
from tokexport.graph_passes.reduction.token_maps import Chain, Matching, TokenMap, even_and_odd
from tokexport.graph_passes.reduction.tokens import Tokens

BY_SIZE, BY_ATTENTION, BY_MAXIMUM, BY_MEAN = range(4)
LATER, AHEAD, PRECISE = range(3)


@dataclass(frozen=True, kw_only=True)
class MCTF(Method):
    """Multi-criteria token fusion before the attention, in both directions.

    With ``one_step_ahead=1`` the attention of the unmerged tokens decides and is merged along, and
    only the values are computed of the merged tokens; 2 computes the attention anew; 0 merges
    behind the MLP by the block's own attention. ``pooling``: weights are 0 the sizes, 1 the
    attention received times the size; 2 takes the maximum, 3 the plain mean.
    """

    name: ClassVar[str] = "mctf"
    summary: ClassVar[str] = "merge by similarity, attention received and size, both directions"
    source: ClassVar[str] = (
        "Lee et al. 2024, Multi-criteria Token Fusion with One-step-ahead Attention, section 3"
    )

    r: int | float | tuple[int | float, ...] = option(
        16, "tokens that go in each block, below 1 a share of the patches, or one for each block"
    )
    tau_sim: float = option(1.0, "temperature of the similarity")
    tau_info: float = option(20.0, "temperature of the information")
    tau_size: float = option(40.0, "temperature of the size")
    bidirectional: bool = option(True, "also merge odd tokens into even ones")
    one_step_ahead: int = option(AHEAD, "1, 2 for the precise attention, 0 behind the MLP")
    pooling: int = option(BY_ATTENTION, "0 size, 1 attention and size, 2 maximum, 3 mean")
    least: int = option(10, "tokens that stay in any case")

    def __post_init__(self) -> None:
        """Refuses options without a meaning."""
        for amount in self.r if isinstance(self.r, tuple) else (self.r,):
            check(0 <= amount < math.inf, f"r is {amount}.", "Give 0 or more.")
        for name in ("tau_sim", "tau_info", "tau_size"):
            value = getattr(self, name)
            check(value > 0, f"{name} is {value}.", "Give a number above 0.")
        ahead, pooling = self.one_step_ahead, self.pooling
        check(ahead in range(3), f"one_step_ahead is {ahead}.", "Give 0, 1 or 2.")
        check(pooling in range(4), f"pooling is {pooling}.", "Give 0, 1, 2 or 3.")
        check(self.least >= 1, f"least is {self.least}.", "Give 1 or more.")

    def acts_in(self, layer: Layer) -> bool:
        """Acts in all blocks but the first, where no others are named."""
        return layer.index > 0 if self.layers is None else layer.index in self.layers

    def before_attention(
        self, layer: Layer, tokens: Tokens, block: Block
    ) -> tuple[Tokens, Attention]:
        """Merges one step ahead."""
        attention = block.attention(tokens)
        if self.one_step_ahead == LATER:
            _ = attention.probabilities  # asked for here, so that the result comes from them too
            return tokens, attention
        r = self._count(layer, tokens)
        if r <= 0:
            return tokens, attention
        probabilities = attention.probabilities
        merge, weight, merged = self._merged(tokens, probabilities, r)
        anew = block.attention(merged)
        if self.one_step_ahead == PRECISE:
            return merged, anew
        ahead = AheadOfMerge(
            anew.q, anew.k, anew.v, anew.scale, before=probabilities, merge=merge, weight=weight
        )
        return merged, ahead

    def after_mlp(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Merges by the attention that the block just used."""
        r = self._count(layer, tokens)
        if self.one_step_ahead != LATER or r <= 0:
            return tokens
        return self._merged(tokens, attention.probabilities, r)[2]

    def _count(self, layer: Layer, tokens: Tokens) -> int:
        r = at_layer(self.r, layer)
        count = tokens.count
        r = int((count - tokens.special) * r) if r < 1 else int(r)
        return min(r, count - self.least, count // 2, count - tokens.special - 1)

    def _merged(
        self, tokens: Tokens, probabilities: Tensor, r: int
    ) -> tuple[TokenMap, Tensor, Tokens]:
        """Returns the merge, its weights (B, N, 1), and the merged tokens."""
        received = probabilities.mean(dim=(1, 2))
        merge = self._match(tokens, self._scores(tokens, received), r)
        size = tokens.sizes
        weight = torch.ones_like(size)
        if self.pooling == BY_SIZE:
            weight = size
        elif self.pooling == BY_ATTENTION:
            weight = received[..., None] * size / size.amax(dim=1, keepdim=True)
        if self.pooling in (BY_MAXIMUM, BY_MEAN):
            x = merge(tokens.x, "amax" if self.pooling == BY_MAXIMUM else "mean")
        else:
            x = merge(tokens.x * weight) / merge(weight)
        return merge, weight, tokens.merged(merge, x, merge(size))

    def _scores(self, tokens: Tokens, received: Tensor) -> Tensor:
        """Returns how much each even patch and each odd one should merge, (B, Na, Nb)."""
        _, a, b = even_and_odd(tokens.count, tokens.special)
        x = normalised(tokens.x)
        similar = (x[:, a] @ x[:, b].transpose(-1, -2) + 1) / 2
        if self.tau_sim != 1:
            similar = similar ** (1 / self.tau_sim)
        # The power of a product of two tokens' terms is the product of their powers: N, not N²/4.
        rare = _rare(received) ** (1 / self.tau_info)
        rare = rare * _rare(tokens.sizes[..., 0]) ** (1 / self.tau_size)
        return similar * rare[:, a, None] * rare[:, None, b]

    def _match(self, tokens: Tokens, scores: Tensor, r: int) -> TokenMap:
        """Matches half of r in one direction and the rest in the other, or all in one."""
        others, a, b = even_and_odd(tokens.count, tokens.special)
        batch, count, special = tokens.x.shape[0], tokens.count, tokens.special
        even = scores.shape[1]  # the second direction needs one of them
        forth = min(r // 2, even - 1) if self.bidirectional else min(r, even)
        kept, src, dst = bipartite_match(scores, forth, "index")
        first = Matching(count, batch, others, a, b, kept, src, dst)
        back = r - forth if self.bidirectional else 0
        if back == 0:
            return first
        left = gather_tokens(scores, kept).transpose(1, 2)
        odd = special + kept.shape[1]
        second = Matching(
            count - forth,
            batch,
            others,
            slice(odd, count - forth),
            slice(special, odd),
            *bipartite_match(left, back, "score"),
            b_first=True,
        )
        return Chain(first, second)


@dataclass(frozen=True, kw_only=True)
class AheadOfMerge(Attention):
    """Attention that was computed before tokens merged, on values computed behind it.

    Keys that merge add up their columns P Gᵀ, queries are averaged with the weights w: of N tokens
    G (M, N) makes M, and G W P Gᵀ v / G w is the result. Computed from the right it needs no other
    matrix than P: each old key takes the value of the token that it became part of.

    Attributes:
        before: P, of the tokens before they merged, (B, H, N, N).
        v: The values of the merged tokens, (B, H, M, Dv).
        merge: G.
        weight: (B, N, 1).
    """

    before: Tensor
    merge: TokenMap
    weight: Tensor

    @functools.cached_property
    def probabilities(self) -> Tensor:
        """Refuses: the matrix of the merged tokens is never made."""
        raise NotImplementedError("Attention one step ahead has no matrix of the merged tokens.")

    @functools.cached_property
    def of_class_token(self) -> Tensor:
        """Refuses: it is a row of that matrix."""
        return self.probabilities[:, :, 0].mean(dim=1)

    def result(self) -> Tensor:
        """Returns (B, H, M, Dv)."""
        values = gather_tokens(_rows(self.v), self.merge.places())
        attended = _rows(self.before @ _heads(values, self.v))
        return _heads(self.merge(attended * self.weight) / self.merge(self.weight), self.v)


def _rare(term: Tensor) -> Tensor:
    """Returns 1 / term, (B, N), as a share of the largest of its image."""
    rare = 1 / term
    return rare / rare.amax(dim=1, keepdim=True)


def _rows(heads: Tensor) -> Tensor:
    """Lays heads (B, H, N, D) side by side in rows (B, N, H·D)."""
    return heads.transpose(1, 2).flatten(2)


def _heads(rows: Tensor, like: Tensor) -> Tensor:
    """Takes rows (B, N, H·D) apart into heads (B, H, N, D) like those of a value."""
    batch, heads, _, depth = like.shape
    return rows.reshape(batch, rows.shape[1], heads, depth).transpose(1, 2)
