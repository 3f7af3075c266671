"""Random: patches at fixed positions stay; what every other method has to beat."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import ClassVar

import torch

from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import Layer, Method, check_shares, option
from tokexport.graph_passes.reduction.schedule import at_layer, at_quarters
from tokexport.graph_passes.reduction.token_maps import Selection
from tokexport.graph_passes.reduction.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class RandomKeep(Method):
    """Keeps patches drawn once from a seed, the same for all images, or evenly spaced ones."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "keep random or evenly spaced patches: the baseline"
    source: ClassVar[str] = "a baseline; the positions are constants of the graph"
    strength: ClassVar[str] = "keep"
    proportional: ClassVar[bool] = False

    keep: float | tuple[float, ...] = option(0.7, "the share of the patches that stay")
    strided: bool = option(False, "evenly spaced positions in place of random ones")
    seed: int = option(0, "the seed of the positions")

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
        stay = self._positions(count - special, kept, layer.index)
        positions = [*range(special), *(special + position for position in stay)]
        index = torch.tensor(positions, device=tokens.x.device)
        return tokens.kept(Selection(index.expand(tokens.x.shape[0], -1), count))

    def _positions(self, patches: int, kept: int, layer: int) -> list[int]:
        if self.strided:
            return [number * patches // kept for number in range(kept)]
        return sorted(random.Random(f"{self.seed} {layer}").sample(range(patches), kept))
