"""DPC-KNN: patches gather around density peaks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokexport.graph_passes.ops.ops import bipartite_match, gather_tokens
from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import (
    Layer,
    Method,
    check,
    check_shares,
    inner_products,
    option,
)
from tokexport.graph_passes.reduction.schedule import at_layer, at_quarters
from tokexport.graph_passes.reduction.token_maps import Matching, ranking
from tokexport.graph_passes.reduction.tokens import Tokens


def distances(x: Tensor) -> Tensor:
    """Returns Euclidean distances of patches (B, T, C) over √C: (B, T, T).

    Of itself a patch is 0 away, and the matrix is symmetric: two nearest patches are equally dense.
    """
    square = (x * x).sum(dim=-1)
    squares = square[:, :, None] + square[:, None, :] - 2 * inner_products(x)
    itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    return (squares.masked_fill(itself, 0).clamp_min(0) / x.shape[-1]).sqrt()


def peak_scores(distance: Tensor, neighbours: int) -> Tensor:
    """Returns density times the distance to the nearest denser patch: (B, T).

    The density is exp of minus the mean squared distance to the nearest patches, itself among them.
    The densest has the largest distance there is.
    """
    nearest = distance.topk(min(neighbours, distance.shape[-1]), dim=-1, largest=False).values
    density = (-(nearest**2).mean(dim=-1)).exp()
    denser = density[:, None, :] > density[:, :, None]
    largest = distance.flatten(1).amax(dim=-1)[:, None, None]
    return torch.where(denser, distance, largest).amin(dim=-1) * density


@dataclass(frozen=True, kw_only=True)
class DPCKNN(Method):
    """Clusters the patches behind a block; a cluster becomes its plain mean.

    Centres come by descending score. The published noise on the density is left out.
    """

    name: ClassVar[str] = "dpcknn"
    summary: ClassVar[str] = "cluster the patches around density peaks"
    source: ClassVar[str] = (
        "Zeng et al. 2022, Not All Tokens Are Equal: Human-centric Visual Analysis via Token "
        "Clustering Transformer, section 3.2, after Du et al. 2016"
    )
    strength: ClassVar[str] = "keep"
    proportional: ClassVar[bool] = False

    keep: float | tuple[float, ...] = option(0.7, "clusters, as a share of the patches")
    neighbours: int = option(5, "nearest patches that make the density")

    def __post_init__(self) -> None:
        """Refuses shares outside 0 … 1, and neighbourhoods below 1."""
        check_shares("keep", self.keep)
        check(self.neighbours >= 1, f"neighbours is {self.neighbours}.", "Give 1 or more.")

    def acts_in(self, layer: Layer) -> bool:
        """Acts at a quarter, a half and three quarters of the depth, where no blocks are named."""
        return at_quarters(self.layers, layer)

    def after_mlp(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Makes ⌈T·keep⌉ clusters of the T patches."""
        special, count, x = tokens.special, tokens.count, tokens.x
        clusters = math.ceil(at_layer(self.keep, layer) * (count - special))
        if clusters >= count - special:
            return tokens
        distance = distances(x[:, special:])
        ranked = ranking(peak_scores(distance, self.neighbours))
        centres, rest = ranked[:, :clusters], ranked[:, clusters:]
        closeness = -gather_tokens(gather_tokens(distance, centres).transpose(1, 2), rest)
        match = bipartite_match(closeness, rest.shape[1], "index")
        others = slice(0, special)
        matching = Matching(count, x.shape[0], others, rest + special, centres + special, *match)
        return tokens.merged(matching, matching(x, "mean"), None)
