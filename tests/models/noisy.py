"""Models that draw random numbers in eval: too small to change an answer, large, or for nobody."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOKENS, WIDTH, KEPT = 12, 8, 5


class Noisy(nn.Module):
    """x (B, 12, 8) → (B, 3): keeps the 5 tokens of the highest scores and pools them."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, 1)
        self.head = nn.Linear(WIDTH, 3)

    def noise(self, scores: Tensor) -> Tensor:
        """Returns what is added to the scores (B, 12)."""
        return torch.zeros_like(scores)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3)."""
        scores = self.score(x)[..., 0]
        noisy = scores + self.noise(scores)
        order = noisy.argsort(dim=1, descending=True)[:, :KEPT]
        kept = x.gather(1, order[..., None].expand(-1, -1, WIDTH))
        result: Tensor = self.head(kept.mean(dim=1))
        return result


class TieBreaking(Noisy):
    """Breaks ties by noise too small to change an answer."""

    def noise(self, scores: Tensor) -> Tensor:
        """Returns (B, 12)."""
        return torch.rand(scores.shape) * 1e-6  # tie_breaking


class Gumbel(Noisy):
    """Samples tokens: every run keeps others."""

    def noise(self, scores: Tensor) -> Tensor:
        """Returns (B, 12)."""
        return -torch.empty_like(scores).exponential_().log()  # gumbel


class Unread(Noisy):
    """Draws what only training reads."""

    def noise(self, scores: Tensor) -> Tensor:
        """Returns (B, 12)."""
        noise = torch.rand_like(scores)
        return noise if self.training else torch.zeros_like(scores)


class Flips(Noisy):
    """Flips a coin for every token."""

    def noise(self, scores: Tensor) -> Tensor:
        """Returns (B, 12)."""
        return torch.bernoulli(scores.sigmoid()) * 1e-9  # flips


class Shuffled(Noisy):
    """Breaks ties by a permutation."""

    def noise(self, scores: Tensor) -> Tensor:
        """Returns (12,)."""
        return torch.randperm(TOKENS) * 1e-6  # shuffled


def tie_breaking() -> tuple[nn.Module, Tensor]:
    return _with_inputs(TieBreaking)


def gumbel() -> tuple[nn.Module, Tensor]:
    return _with_inputs(Gumbel)


def unread() -> tuple[nn.Module, Tensor]:
    return _with_inputs(Unread)


def flips() -> tuple[nn.Module, Tensor]:
    return _with_inputs(Flips)


def shuffled() -> tuple[nn.Module, Tensor]:
    return _with_inputs(Shuffled)


def silent() -> tuple[nn.Module, Tensor]:
    return _with_inputs(Noisy)


def _with_inputs(kind: type[Noisy]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return kind().eval(), torch.zeros(2, TOKENS, WIDTH)
