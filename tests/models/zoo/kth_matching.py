"""Every k-th token a destination: the coarse matching beside ToMe's own (Bolya and Hoffman 2023).

All other patches merge into the most alike destination, so that one in k is left; the class token
stays apart. A factory makes the class that a model is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models.zoo.vit import Block, Vit, images, patch, seeded
from torch import Tensor, nn

Merge = Callable[..., Tensor]


def kth_matching(metric: Tensor, k: int) -> Merge:
    """Matches metric (B, N, C), N a multiple of k."""

    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        B, N, C = x.shape
        x = x.view(B, N // k, k, C)
        return x[:, :, : k - 1].contiguous().view(B, -1, C), x[:, :, k - 1]

    with torch.no_grad():
        a, b = split(metric / metric.norm(dim=-1, keepdim=True))
        scores = a @ b.transpose(-1, -2)
        _, dst_idx = scores.max(dim=-1)
        dst_idx = dst_idx[..., None]

    def merge(x: Tensor, mode: str = "mean") -> Tensor:
        src, dst = split(x)
        n, r, c = src.shape
        return dst.scatter_reduce(-2, dst_idx.expand(n, r, c), src, reduce=mode)

    return merge


class KthBlock(Block):
    """Merges between attention and MLP."""

    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.heads(self.norm1(x))
        attn = (q @ k.transpose(-2, -1) * self.attn.scale).softmax(dim=-1)
        x = x + self.drop_path(self.attn.join(attn @ v))
        every = self._info["k"].pop(0)
        if every > 1:
            merge = kth_matching(k.mean(1)[:, 1:].contiguous(), every)
            size = self._info["size"]
            size = torch.ones_like(x[:, 1:, :1]) if size is None else size
            tokens = merge(x[:, 1:] * size, mode="sum")
            self._info["size"] = merge(size, mode="sum")
            x = torch.cat([x[:, :1], tokens / self._info["size"]], dim=1)
        result: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return result


def make_class(base: type[Vit]) -> type[Vit]:
    """Returns a class whose runs begin with a fresh schedule."""

    class KthVit(base):  # type: ignore[misc,valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            self._info["k"] = list(self.schedule)
            self._info["size"] = None
            result: Tensor = super().forward(*args, **kwargs)
            return result

    return KthVit


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """One in two stays in block 1, one in three in block 2."""
    model = seeded(seed)
    patch(model, {}, KthBlock)
    model.__class__ = make_class(Vit)
    model.schedule = (1, 2, 3, 1)  # type: ignore[assignment]
    return model, images()
