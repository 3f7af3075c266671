"""The part of a block that a method may ask for: norm and projections, and what they come to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from helpers.reduction.cases import HEADS, WIDTH
from helpers.reduction.outcome import Array, Sizes
from torch import Tensor

from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.tokens import Tokens

SCALE = 0.7


@dataclass(frozen=True)
class Projections:
    """Weights (C, C) of queries, keys and values; heads of C / H channels."""

    q: Tensor
    k: Tensor
    v: Tensor

    def attention(self, tokens: Tokens) -> Attention:
        """The attention as a block computes it, with log(size) where there are sizes."""
        x = F.layer_norm(tokens.x, (WIDTH,))
        heads = [
            (x @ w).unflatten(-1, (HEADS, -1)).transpose(1, 2) for w in (self.q, self.k, self.v)
        ]
        log_size = None if tokens.size is None else tokens.size[..., 0].log()
        return Attention(*heads, SCALE, log_size)


def projections(seed: int) -> Projections:
    """Random ones."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(3, WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    return Projections(*drawn)


def head_rows(x: Array, weight: Tensor, head: int) -> list[Array]:
    """One head of a projection of rows x (N, C), row after row."""
    channels = WIDTH // HEADS
    part = weight.numpy()[:, head * channels : (head + 1) * channels]
    return [_norm(row) @ part for row in x]


def _norm(row: Array) -> Array:
    normal: Array = (row - row.mean()) / math.sqrt(float(((row - row.mean()) ** 2).mean()) + 1e-5)
    return normal


def probabilities(x: Array, size: Sizes, block: Projections) -> Array:
    """softmax(q kᵀ scale + log size) of one image, (H, N, N)."""
    found = np.empty((HEADS, len(x), len(x)))
    for head in range(HEADS):
        queries, keys = head_rows(x, block.q, head), head_rows(x, block.k, head)
        for n, q in enumerate(queries):
            weights = [math.exp(float(q @ k) * SCALE) for k in keys]
            weights = [w * s for w, s in zip(weights, size or [1.0] * len(x), strict=True)]
            found[head, n] = [w / sum(weights) for w in weights]
    return found
