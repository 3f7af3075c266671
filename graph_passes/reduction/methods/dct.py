"""DCT: the tokens' high frequencies are dropped."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import Layer, Method, check_shares, option
from tokexport.graph_passes.reduction.schedule import at_layer
from tokexport.graph_passes.reduction.tokens import Tokens


def dct_matrix(size: int) -> NDArray[np.float64]:
    """Returns the orthonormal DCT-II of a length as a matrix: row k is frequency k."""
    position = np.arange(size) + 0.5
    frequency = np.arange(size)[:, None]
    matrix: NDArray[np.float64] = np.cos(math.pi / size * frequency * position)
    matrix *= math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


@functools.lru_cache(maxsize=64)
def shortening(size: int, kept: int) -> NDArray[np.float64]:
    """Returns the matrix (kept, size): DCT-II, the first frequencies, inverse at that length.

    It is no tensor, so that the first use in a trace does not become part of the trace.
    """
    return dct_matrix(kept).T @ dct_matrix(size)[:kept]


@dataclass(frozen=True, kw_only=True)
class DCT(Method):
    """Shortens the patches behind the MLP by one constant matrix; special tokens stay apart."""

    name: ClassVar[str] = "dct"
    summary: ClassVar[str] = "keep the low frequencies along the tokens"
    source: ClassVar[str] = (
        "He et al. 2023, Fourier Transformer: Fast Long Range Modeling by Removing Sequence "
        "Redundancy with FFT Operator, section 3"
    )
    strength: ClassVar[str] = "keep"
    proportional: ClassVar[bool] = False

    keep: float | tuple[float, ...] = option(0.9, "the share of the frequencies that stay")

    def __post_init__(self) -> None:
        """Refuses shares outside 0 … 1."""
        check_shares("keep", self.keep)

    def after_mlp(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Keeps ⌈T·keep⌉ of the T patches' frequencies."""
        special = tokens.special
        patches = tokens.count - special
        kept = math.ceil(patches * at_layer(self.keep, layer))
        if kept >= patches:
            return tokens
        exact = tokens.x.dtype == torch.float64
        shorten = shortening(patches, kept).astype(np.float64 if exact else np.float32)
        matrix = torch.from_numpy(shorten).to(tokens.x)
        x = torch.cat([tokens.x[:, :special], matrix @ tokens.x[:, special:]], dim=1)
        return tokens.mixed(x, "dct")
