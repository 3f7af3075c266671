"""MCTF (Lee et al. 2024): tokens merge by similarity, attention received and size together.

One step ahead: a block merges before its attention, by the attention of the tokens as they come
in, and that attention is merged along and used. Two directions: evens into odds, then odds into the
evens that remain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models.zoo.vit import Attention, Block, Vit, images, patch, seeded
from torch import Tensor, nn

Merge = Callable[..., Tensor]
TAU_SIM, TAU_INFO, TAU_SIZE = 1, 20, 40
FEWEST = 10


def criteria(x: Tensor, received: Tensor, size: Tensor) -> Tensor:
    """Scores of even against odd tokens (B, Na, Nb); received and size are (B, N)."""
    x = x / x.norm(dim=-1, keepdim=True)
    scores = ((x[:, ::2] @ x[:, 1::2].transpose(-1, -2) + 1) / 2) ** (1 / TAU_SIM)
    for term, tau in ((1 / received, TAU_INFO), (1 / size, TAU_SIZE)):
        term = term / term.max(dim=1, keepdim=True)[0]
        scores = scores * (term[:, ::2, None] * term[:, None, 1::2]) ** (1 / tau)
    scores[..., 0, :] = -torch.inf
    return scores


def best_pairs(scores: Tensor, r: int, in_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns unmerged, sources and destinations, each (B, K, 1)."""
    node_max, node_idx = scores.max(dim=-1)
    edge_idx = node_max.argsort(dim=-1, descending=True).unsqueeze(-1)
    unm_idx, src_idx = edge_idx[:, r:], edge_idx[:, :r]
    dst_idx = node_idx.unsqueeze(-1).gather(dim=-2, index=src_idx)
    if in_order:
        unm_idx = unm_idx.sort(dim=1)[0]
    return unm_idx, src_idx, dst_idx


def one_way(scores: Tensor, r: int) -> Merge:
    """Merges r evens into odds."""
    unm_idx, src_idx, dst_idx = best_pairs(scores, r, in_order=True)

    def merge(x: Tensor, mode: str = "sum") -> Tensor:
        n, _, c = x.shape
        src, dst = x[:, ::2], x[:, 1::2]
        unm = src.gather(-2, unm_idx.expand(n, -1, c))
        src = src.gather(-2, src_idx.expand(n, r, c))
        dst = dst.scatter_reduce(-2, dst_idx.expand(n, r, c), src, reduce=mode)
        return torch.cat([unm, dst], dim=1)

    return merge


def both_ways(scores: Tensor, r: int) -> Merge:
    """Merges evens into odds, then odds into the evens that are left."""
    r1, r2 = r // 2, r - r // 2
    unm1, src1, dst1 = best_pairs(scores, r1, in_order=True)
    B, _, odds = scores.shape
    left = scores.gather(dim=1, index=unm1.expand(B, -1, odds))
    unm2, src2, dst2 = best_pairs(left.transpose(1, 2), r2, in_order=False)

    def merge(x: Tensor, mode: str = "sum") -> Tensor:
        n, _, c = x.shape
        even, odd = x[:, ::2], x[:, 1::2]
        odd = odd.scatter_reduce(
            -2, dst1.expand(n, r1, c), even.gather(-2, src1.expand(n, r1, c)), reduce=mode
        )
        even = even.gather(-2, unm1.expand(n, -1, c))
        even = even.scatter_reduce(
            -2, dst2.expand(n, r2, c), odd.gather(-2, src2.expand(n, r2, c)), reduce=mode
        )
        return torch.cat([even, odd.gather(-2, unm2.expand(n, -1, c))], dim=1)

    return merge


class MCTFAttention(Attention):
    """Gives its probabilities away, and takes merged ones back."""

    def probabilities(self, x: Tensor, size: Tensor | None) -> Tensor:
        """Returns (B, H, N, N)."""
        q, k, _ = self.heads(x)
        attn = q @ k.transpose(-2, -1) * self.scale
        if size is not None:
            attn = attn + size.log()[:, None, None, :, 0]
        result: Tensor = attn.softmax(dim=-1)
        return result

    def forward(self, x: Tensor, attn: Tensor | None = None, size: Tensor | None = None) -> Tensor:
        if attn is None:
            attn = self.probabilities(x, size)
        _, _, v = self.heads(x)
        return self.join(attn @ v)


class MCTFBlock(Block):
    """Merges before its attention."""

    layer: int
    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        attn = None
        r = self._info["r"].pop(0)
        if r > 0:
            x, attn = self.merge(x, r)
        x = x + self.drop_path(self.attn(self.norm1(x), attn, self._info["size"]))
        result: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return result

    def merge(self, x: Tensor, r: float) -> tuple[Tensor, Tensor]:
        """Returns the merged tokens and the merged attention."""
        size = self._info["size"]
        attn = self.attn.probabilities(self.norm1(x), size)  # type: ignore[operator]
        if size is None:
            size = torch.ones_like(x[..., :1])
        t = x.shape[1]
        r = int((t - 1) * r) if r < 1 else int(r)
        r = t - FEWEST if t - r < FEWEST else r
        r = min(r, t // 2)
        if r <= 0:
            return x, attn
        received = attn.mean(dim=(1, 2))
        ways = both_ways if self._info["bidirection"] else one_way
        merge = ways(criteria(x, received, size[..., 0]), r)

        weight = received.unsqueeze(-1) * size / size.max(dim=1, keepdim=True)[0]
        total = merge(weight)
        x = merge(x * weight) / total
        self._info["size"] = merge(size)
        return x, self.merge_attention(attn, merge, weight, total)

    @staticmethod
    def merge_attention(attn: Tensor, merge: Merge, weight: Tensor, total: Tensor) -> Tensor:
        """Sums the keys' columns and averages the queries' rows of (B, H, N, N)."""
        B, H, N, _ = attn.shape
        columns = merge(attn.reshape(B, H * N, N).transpose(1, 2)).transpose(1, 2)
        rows = columns.reshape(B, H, N, -1).permute(0, 2, 1, 3).reshape(B, N, -1)
        rows = merge(rows * weight) / total
        M = rows.shape[1]
        return rows.reshape(B, M, H, M).permute(0, 2, 1, 3)


class MCTFVit(Vit):
    """Fills the shared dict before each run."""

    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        self._info["r"] = list(self._info["schedule"])
        self._info["size"] = None
        result: Tensor = super().forward(x)
        return result


def _built(seed: int, bidirection: bool, schedule: list[float]) -> tuple[nn.Module, Tensor]:
    model = seeded(seed)
    info = {"schedule": schedule, "bidirection": bidirection}
    patch(model, info, MCTFBlock, MCTFAttention)
    model.__class__ = MCTFVit
    return model, images()


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Seven tokens go in each of the last three blocks, in both directions."""
    return _built(seed, True, [0, 7, 7, 7])


def build_one_way(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A share of the patches goes in every second block, in one direction."""
    return _built(seed, False, [0, 0.2, 0, 0.2])


def build_to_the_fewest(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Half of the tokens go, then all but ten, then none."""
    return _built(seed, True, [0, 18, 18, 18])
