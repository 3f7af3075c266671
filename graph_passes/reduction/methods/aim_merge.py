"""AIM, merging stage: the features behind an encoder merge twice, to a quarter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import Layer, Method, check, normalised, option
from tokexport.graph_passes.reduction.schedule import at_encoder_end
from tokexport.graph_passes.reduction.token_maps import match_rows
from tokexport.graph_passes.reduction.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class AimMerge(Method):
    """Rounds of ToMe's matching on the features themselves, plain means, half of them each."""

    name: ClassVar[str] = "aim-merge"
    summary: ClassVar[str] = "merge the encoder's features by halves"
    source: ClassVar[str] = (
        "Zhong et al. 2024, AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and "
        "Pruning, section 3"
    )
    strength: ClassVar[str] = "rounds"
    proportional: ClassVar[bool] = False

    rounds: int = option(2, "how often half of the patches merge")

    def __post_init__(self) -> None:
        """Refuses to merge never."""
        check(self.rounds >= 1, f"rounds is {self.rounds}.", "Give 1 or more.")

    def acts_in(self, layer: Layer) -> bool:
        """Acts behind the second-to-last block, where no others are named."""
        return at_encoder_end(self.layers, layer)

    def after_mlp(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Merges ⌊T / 2⌋ of the T patches in each round; what is left of a comes by its score."""
        for _ in range(self.rounds):
            x = tokens.x
            r = (tokens.count - tokens.special) // 2
            if r == 0:
                return tokens
            others, a, b = _split(tokens)
            metric = normalised(x)
            scores = metric[:, a] @ metric[:, b].transpose(-1, -2)
            matching = match_rows(scores, r, "score", x, others, a, b)
            tokens = tokens.merged(matching, matching(x, "mean"), None)
        return tokens


def _split(tokens: Tokens) -> tuple[slice, slice, slice]:
    """Splits the patches at their own even and odd positions: a is the larger."""
    special, count = tokens.special, tokens.count
    return slice(0, special), slice(special, count, 2), slice(special + 1, count, 2)
