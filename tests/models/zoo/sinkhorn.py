"""Soft clustering by optimal transport: Sinkhorn-Knopp between patches and learned centres.

Cuturi 2013, with a fixed number of normalisations in turn over patches and over centres, in the
log domain or on the exponentials. Merged tokens are the means by the plan's weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from models.zoo.vit import Vit, images
from torch import Tensor, nn


def log_sinkhorn(scores: Tensor, num_iters: int) -> Tensor:
    """Returns the plan of scores (B, M, N), each centre's weights summing to one."""
    for _ in range(num_iters):
        scores = scores - torch.logsumexp(scores, dim=1, keepdim=True)
        scores = scores - torch.logsumexp(scores, dim=2, keepdim=True)
    return scores.exp()


@torch.no_grad()
def plain_sinkhorn(scores: Tensor, num_iters: int) -> Tensor:
    """The same by divisions."""
    Q = torch.exp(scores)
    Q /= Q.sum(dim=(1, 2), keepdim=True)
    K, N = Q.shape[1:]
    for _ in range(num_iters):
        Q /= torch.sum(Q, dim=1, keepdim=True)
        Q /= N
        Q /= torch.sum(Q, dim=2, keepdim=True)
        Q /= K
    return Q * K


class SinkhornPool(nn.Module):
    """(B, N, C) → (B, M, C) and the plan (B, M, N)."""

    def __init__(self, dim: int, num_centres: int, epsilon: float, log_domain: bool) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(num_centres, dim))
        self.epsilon = epsilon
        self.assign = log_sinkhorn if log_domain else plain_sinkhorn

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        centres = F.normalize(self.centres, dim=-1)
        scores = torch.einsum("mc,bnc->bmn", centres, F.normalize(x, dim=-1))
        plan = self.assign(scores / self.epsilon, 3)
        return torch.einsum("bmn,bnc->bmc", plan, x), plan


class SinkhornVit(Vit):
    """Pools the patches behind one block; returns the logits and the plan."""

    def __init__(self, location: int, num_centres: int, log_domain: bool, **options: Any) -> None:
        super().__init__(**options)
        self.location = location
        self.pool = SinkhornPool(self.head.in_features, num_centres, 0.1, log_domain)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.location:
                pooled, plan = self.pool(x[:, 1:])
                x = torch.cat([x[:, :1], pooled], dim=1)
        return self.head(self.norm(x)[:, 0]), plan


def build(seed: int = 0, log_domain: bool = True) -> tuple[nn.Module, Tensor]:
    """36 patches become 9 centres behind block 1."""
    torch.manual_seed(seed)
    return SinkhornVit(1, 9, log_domain).eval(), images()


def build_plain(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The same on the exponentials."""
    return build(seed, log_domain=False)
