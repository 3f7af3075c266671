"""EViT (Liang et al. 2022): the patches that the class token attends to most stay, in that order.

Optionally the rest become one token, their sum weighted by attention, which comes last and competes
in later blocks like any patch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from models.zoo.vit import Attention, Block, Vit, images, patch, seeded
from torch import Tensor, nn


def complement_idx(idx: Tensor, n: int) -> Tensor:
    """Returns the positions below n that idx (B, K) leaves out, (B, n - K), in order."""
    everyone = torch.arange(n).unsqueeze(0).expand(idx.shape[0], n)
    marked = torch.scatter(everyone, dim=-1, index=idx, value=0)
    return torch.sort(marked, dim=-1, descending=False)[0][:, idx.shape[1] :]


class EViTAttention(Attention):
    """Returns beside x the kept positions and the class token's attention."""

    keep_rate: float = 1.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        q, k, v = self.heads(x)
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = self.attn_drop(attn.softmax(dim=-1))
        x = self.join(attn @ v)
        left = math.ceil(self.keep_rate * (x.shape[1] - 1))
        if left == x.shape[1] - 1:
            return x, None, None
        cls_attn = attn[:, :, 0, 1:].mean(dim=1)
        _, idx = torch.topk(cls_attn, left, dim=1, largest=True, sorted=True)
        return x, idx, cls_attn


class EViTBlock(Block):
    """Drops patches between attention and MLP."""

    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        tmp, idx, cls_attn = self.attn(self.norm1(x))
        x = x + self.drop_path(tmp)
        if idx is not None:
            index = idx.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            non_cls = x[:, 1:]
            x_others = torch.gather(non_cls, dim=1, index=index)
            if self._info["fuse_token"]:
                compl = complement_idx(idx, non_cls.shape[1])
                rest = torch.gather(
                    non_cls, dim=1, index=compl.unsqueeze(-1).expand(-1, -1, x.shape[-1])
                )
                weights = torch.gather(cls_attn, dim=1, index=compl)
                extra = torch.sum(rest * weights.unsqueeze(-1), dim=1, keepdim=True)
                x = torch.cat([x[:, 0:1], x_others, extra], dim=1)
            else:
                x = torch.cat([x[:, 0:1], x_others], dim=1)
        result: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return result


def apply_evit(model: Vit, keep_rate: float, drop_loc: tuple[int, ...], fuse_token: bool) -> None:
    """Patches a ViT in place."""
    patch(model, {"fuse_token": fuse_token}, EViTBlock, EViTAttention)
    for location in drop_loc:
        attn = model.blocks[location].attn
        attn.keep_rate = keep_rate  # type: ignore[union-attr]


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Without the fused token: 70 % stay in blocks 1 and 3."""
    model = seeded(seed)
    apply_evit(model, 0.7, (1, 3), fuse_token=False)
    return model, images()


def build_fused(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """With the fused token."""
    model = seeded(seed)
    apply_evit(model, 0.7, (1, 3), fuse_token=True)
    return model, images()


def build_distilled(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """With a distillation token, which counts as a patch."""
    model = seeded(seed, distilled=True)
    apply_evit(model, 0.7, (1, 3), fuse_token=True)
    return model, images()
