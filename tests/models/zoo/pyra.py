"""PYRA (Xiong et al. 2024): ToMe whose sources are modulated by trained parameters before merging.

From the sum of each pair come a weight per channel, by a (r, 1), and one per pair, by b (1, C); b
is zero before training and is drawn at random here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from models.zoo.vit import WIDTH, Block, Vit, images, patch, seeded
from torch import Tensor, nn


class Modulation(nn.Module):
    """Scales sources (B, r, C) by what they and their destinations hold."""

    def __init__(self, r: int, dim: int) -> None:
        super().__init__()
        self.adapt_norm = nn.LayerNorm(dim)
        self.w_r = nn.Parameter(torch.randn(r, 1))
        self.w_d = nn.Parameter(torch.randn(1, dim) * 0.1)

    def forward(self, src: Tensor, dst: Tensor) -> Tensor:
        info = self.adapt_norm(src + dst)
        channel = 2 * torch.sigmoid(self.w_r.t() @ info)
        token = 2 * torch.sigmoid(info @ self.w_d.t()) - 1
        return src + (src * channel) * token


def matching(metric: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the positions (…, 1) of what stays, of the sources and of their destinations."""
    with torch.no_grad():
        metric = metric / metric.norm(dim=-1, keepdim=True)
        a, b = metric[..., ::2, :], metric[..., 1::2, :]
        scores = a @ b.transpose(-1, -2)
        scores[..., 0, :] = -torch.inf
        node_max, node_idx = scores.max(dim=-1)
        edge_idx = node_max.argsort(dim=-1, descending=True)[..., None]
        unm_idx = edge_idx[..., r:, :].sort(dim=1)[0]
        src_idx = edge_idx[..., :r, :]
        dst_idx = node_idx[..., None].gather(dim=-2, index=src_idx)
    return unm_idx, src_idx, dst_idx


class PyraBlock(Block):
    """Merges between attention and MLP."""

    r: int
    modulation: Modulation
    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        size = self._info["size"]
        q, k, v = self.attn.heads(self.norm1(x))
        attn = q @ k.transpose(-2, -1) * self.attn.scale
        if size is not None:
            attn = attn + size.log()[:, None, None, :, 0]
        x = x + self.attn.join(attn.softmax(dim=-1) @ v)
        if size is None:
            size = torch.ones_like(x[..., :1])
        x, self._info["size"] = self.merge(x, size, k.mean(1))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result

    def merge(self, x: Tensor, size: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what is left of x and its sizes."""
        unm_idx, src_idx, dst_idx = matching(metric, self.r)
        C = x.shape[-1]
        whole = torch.cat([x, size], dim=-1)
        even, odd = whole[:, ::2], whole[:, 1::2]
        unm = even.gather(1, unm_idx.expand(-1, -1, C + 1))
        src = even.gather(1, src_idx.expand(-1, -1, C + 1))
        dst = odd.gather(1, dst_idx.expand(-1, -1, C + 1))
        moved = self.modulation(src[..., :C], dst[..., :C]) * src[..., C:]
        total = odd[..., :C] * odd[..., C:]
        total = total.scatter_reduce(1, dst_idx.expand(-1, -1, C), moved, reduce="sum")
        sizes = odd[..., C:].scatter_reduce(1, dst_idx, src[..., C:], reduce="sum")
        x = torch.cat([unm[..., :C], total / sizes], dim=1)
        return x, torch.cat([unm[..., C:], sizes], dim=1)


class PyraVit(Vit):
    """Forgets the sizes of the last run."""

    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        self._info["size"] = None
        return F.log_softmax(super().forward(x), dim=-1)


def build(seed: int = 0, r: int = 4) -> tuple[nn.Module, Tensor]:
    """Four tokens merge in each of four blocks."""
    model = seeded(seed)
    patch(model, {"size": None}, PyraBlock)
    for block in model.blocks:
        block.r = r  # type: ignore[assignment]
        block.modulation = Modulation(r, WIDTH)
    model.__class__ = PyraVit
    return model.eval(), images()
