"""PiToMe (Tran et al. 2024): tokens in crowded places, by an energy over all pairs, merge first.

The class token is set apart and comes back first. The first half of the layers matches the whole
list sorted by energy; in the second half only the 2r tokens of highest energy may merge at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from models.zoo.vit import Block, Vit, images, patch, seeded
from torch import Tensor, nn

Merge = Callable[..., Tensor]


def energy_matching(metric: Tensor, ratio: float, margin: float, whole: bool) -> Merge | None:
    """Matches metric (B, N, C), class token first; None where nothing is to merge."""
    with torch.no_grad():
        metric = F.normalize(metric[:, 1:, :], p=2, dim=-1)
        B, T, _ = metric.shape
        r = int(T - T * ratio)
        if r <= 0:
            return None
        batch_idx = torch.arange(B).unsqueeze(1)
        sim = metric @ metric.transpose(-1, -2)
        energy = F.elu(sim - margin, alpha=1.0).mean(dim=-1)
        indices = torch.argsort(energy, descending=True)
    if whole:
        return _match_all(sim, indices, r, batch_idx)
    return _match_crowded(sim, indices, r, batch_idx)


def _match_all(sim: Tensor, indices: Tensor, r: int, batch_idx: Tensor) -> Merge:
    """Splits the sorted list alternately and merges the r best pairs."""
    B, T, _ = sim.shape
    a_idx, b_idx = indices[..., ::2], indices[..., 1::2]
    scores = sim.gather(dim=-1, index=b_idx.unsqueeze(-2).expand(B, T, b_idx.shape[-1]))
    scores = scores.gather(dim=-2, index=a_idx.unsqueeze(-1).expand(B, -1, b_idx.shape[-1]))
    node_max, node_idx = scores.max(dim=-1)
    edge_idx = node_max.argsort(dim=-1, descending=True)[..., None]
    unm_idx, src_idx = edge_idx[..., r:, :], edge_idx[..., :r, :]
    dst_idx = node_idx[..., None].gather(dim=-2, index=src_idx)

    def merge(x: Tensor, mode: str = "mean") -> Tensor:
        cls, x = x[:, :1], x[:, 1:]
        src, dst = x[batch_idx, a_idx], x[batch_idx, b_idx]
        n, t1, c = src.shape
        unm = src.gather(dim=-2, index=unm_idx.expand(n, t1 - r, c))
        src = src.gather(dim=-2, index=src_idx.expand(n, r, c))
        dst = dst.scatter_reduce(-2, dst_idx.expand(n, r, c), src, reduce=mode)
        return torch.cat([cls, unm, dst], dim=1)

    return merge


def _match_crowded(sim: Tensor, indices: Tensor, r: int, batch_idx: Tensor) -> Merge:
    """Merges every second of the 2r tokens of highest energy into the best of the others."""
    B, T, _ = sim.shape
    merge_idx, protected_idx = indices[..., : 2 * r], indices[..., 2 * r :]
    a_idx, b_idx = merge_idx[..., ::2], merge_idx[..., 1::2]
    scores = sim.gather(dim=-1, index=b_idx.unsqueeze(-2).expand(B, T, r))
    scores = scores.gather(dim=-2, index=a_idx.unsqueeze(-1).expand(B, r, r))
    _, dst_idx = scores.max(dim=-1)

    def merge(x: Tensor, mode: str = "mean") -> Tensor:
        C = x.shape[-1]
        cls, x = x[:, :1, :], x[:, 1:, :]
        protected = x[batch_idx, protected_idx, :]
        src, dst = x[batch_idx, a_idx, :], x[batch_idx, b_idx, :]
        dst = dst.scatter_reduce(-2, dst_idx.unsqueeze(2).expand(B, r, C), src, reduce=mode)
        return torch.cat([cls, protected, dst], dim=1)

    return merge


class PiToMeBlock(Block):
    """Merges between attention and MLP."""

    layer: int
    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.heads(self.norm1(x))
        attn = (q @ k.transpose(-2, -1) * self.attn.scale).softmax(dim=-1)
        x = x + self.drop_path(self.attn.join(attn @ v))
        depth = self._info["depth"]
        merge = energy_matching(
            k.mean(1),
            self._info["ratio"].pop(0),
            margin=0.75 * (1 - self.layer / depth),
            whole=self.layer < depth // 2,
        )
        if merge is not None:
            size = self._info["size"]
            if size is None:
                size = torch.ones_like(x[..., 0, None])
            x = merge(x * size, mode="sum")
            self._info["size"] = merge(size, mode="sum")
            x = x / self._info["size"]
        result: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return result


class PiToMeVit(Vit):
    """Fills the shared dict before each run."""

    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        self._info["ratio"] = [self._info["keep"]] * len(self.blocks)
        self._info["size"] = None
        result: Tensor = super().forward(x)
        return result


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Keeps 90 % of the patches in each block."""
    model = seeded(seed)
    patch(model, {"keep": 0.9, "depth": len(model.blocks)}, PiToMeBlock)
    model.__class__ = PiToMeVit
    return model, images()
