"""Computes the attention of one layer, as far as a method or the block needs it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Attention:
    """Attention softmax(q kᵀ scale + log size) v of B images, H heads, N tokens.

    Attributes:
        q: (B, H, N, D).
        k: (B, H, N, D).
        v: (B, H, N, Dv).
        scale: The factor of q kᵀ.
        log_size: The additive bias of each key, (B, N), or None.
        given: Probabilities (B, H, N, N) to use in place of the softmax, or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    log_size: Tensor | None = None
    given: Tensor | None = None

    @functools.cached_property
    def probabilities(self) -> Tensor:
        """The whole matrix (B, H, N, N); once it is asked for, the result is computed from it."""
        return self.rows(self.q) if self.given is None else self.given

    def rows(self, q: Tensor) -> Tensor:
        """Returns the probabilities of some queries (B, H, K, D): (B, H, K, N)."""
        logits = q @ self.k.transpose(-2, -1) * self.scale
        if self.log_size is not None:
            logits = logits + self.log_size[:, None, None, :]
        return logits.softmax(dim=-1)

    @functools.cached_property
    def of_class_token(self) -> Tensor:
        """Returns the attention of the first token, averaged over heads: (B, N)."""
        if "probabilities" in self.__dict__ or self.given is not None:
            return self.probabilities[:, :, 0].mean(dim=1)
        return self.rows(self.q[:, :, :1])[:, :, 0].mean(dim=1)

    def result(self) -> Tensor:
        """Returns (B, H, N, Dv)."""
        if "probabilities" in self.__dict__ or self.given is not None:
            return self.probabilities @ self.v
        mask = None if self.log_size is None else self.log_size[:, None, None, :]
        return F.scaled_dot_product_attention(
            self.q, self.k, self.v, attn_mask=mask, scale=self.scale
        )
