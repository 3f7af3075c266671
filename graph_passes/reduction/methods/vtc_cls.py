"""VTC-CLS: the patches that the class token attended to over several layers stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import Layer, Method, check, option
from tokexport.graph_passes.reduction.token_maps import Selection, behind_special, ranking
from tokexport.graph_passes.reduction.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class VtcCls(Method):
    """Sums the class token's attention from one block on, and selects behind the second-to-last.

    The patches keep their spatial order behind the special tokens. ``layers`` is the span of blocks
    whose attention counts; its last one is where patches are selected.
    """

    name: ClassVar[str] = "vtc-cls"
    summary: ClassVar[str] = "keep what the class token attended to over several layers"
    source: ClassVar[str] = (
        "Wang et al. 2024, [CLS] Token Tells Everything Needed for Training-free Efficient MLLMs, "
        "section 3"
    )
    strength: ClassVar[str] = "tokens"
    proportional: ClassVar[bool] = False
    needs_class_token: ClassVar[bool] = True

    tokens: int = option(36, "patches that stay")
    start: int | None = option(None, "the first block that counts; two thirds of the depth")

    def __post_init__(self) -> None:
        """Refuses to keep nothing."""
        check(self.tokens >= 1, f"tokens is {self.tokens}.", "Give 1 or more.")
        check(self.layers is None, "vtc-cls takes no layers.", "Give start=NUMBER.")
        check(self.start is None or self.start >= 0, f"start is {self.start}.", "Give 0 or more.")

    def acts_in(self, layer: Layer) -> bool:
        """Acts from the first block that counts to the second-to-last."""
        last = max(layer.depth - 2, 0)
        start = min(2 * layer.depth // 3, last) if self.start is None else self.start
        check(
            start <= last,
            f"start is {start}, and the patches are selected behind block {last}.",
            f"Give a block up to {last}.",
        )
        return start <= layer.index <= last

    def after_mlp(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Adds this block's attention up, and selects behind the last."""
        special, count = tokens.special, tokens.count
        score = attention.of_class_token[:, special:]
        if tokens.memory is not None:
            score = tokens.memory + score
        if layer.index < max(layer.depth - 2, 0):
            return tokens.remember(score)
        if self.tokens >= count - special:
            return tokens
        index = ranking(score)[:, : self.tokens].sort(dim=-1).values + special
        return tokens.kept(Selection(behind_special(special, index), count))
