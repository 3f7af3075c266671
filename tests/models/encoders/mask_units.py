"""A hierarchical encoder in mask units: tokens in an order that pooling is a view of.

Tokens are laid out so that those which pool together lie one stride apart; units that say little
are left out by a boolean mask of a fixed count; queries pool by their largest inside the attention;
behind, the order is undone into a map in which what was left out is a learned token.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, SIDE, STRIDE = 16, 8, (2, 2)


class Unroll(nn.Module):
    """Puts (B, H · W, C) in the order in which a stride of tokens lies apart."""

    def __init__(self, size: list[int], schedule: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.size, self.schedule = size, schedule

    def forward(self, x: Tensor) -> Tensor:
        B, _, C = x.shape
        cur_size = self.size
        x = x.view(*([B, *cur_size, C]))
        for strides in self.schedule:
            cur_size = [i // s for i, s in zip(cur_size, strides, strict=True)]
            new_shape = [B, *sum([[i, s] for i, s in zip(cur_size, strides, strict=True)], []), C]
            x = x.view(new_shape)
            L = len(new_shape)
            permute = [0, *range(2, L - 1, 2), *range(1, L - 1, 2), L - 1]
            x = x.permute(permute)
            x = x.flatten(0, len(strides))
            B *= math.prod(strides)
        x = x.reshape(-1, math.prod(self.size), C)
        return x


def reroll(x: Tensor, size: list[int], schedule: list[tuple[int, ...]]) -> Tensor:
    """Undoes the order: (B, N, C) → (B, H, W, C)."""
    B, N, C = x.shape
    D = len(size)
    cur_mu_shape = [1] * D
    for strides in schedule:
        x = x.view(B, *strides, N // math.prod(strides), *cur_mu_shape, C)
        L = len(x.shape)
        permute = [0, 1 + D]
        permute += sum(
            [[p, q] for p, q in zip(range(1, 1 + D), range(2 + D, L - 1), strict=True)], []
        )
        permute += [L - 1]
        x = x.permute(permute)
        for i in range(D):
            cur_mu_shape[i] *= strides[i]
        x = x.reshape(B, -1, *cur_mu_shape, C)
        N = x.shape[1]
    x = x.view(B, N, *cur_mu_shape, C)
    grid = [s // m for s, m in zip(size, cur_mu_shape, strict=True)]
    x = x.view(B, *grid, *cur_mu_shape, C).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(B, *size, C)


class MaskUnitAttention(nn.Module):
    """Attention inside units, or of all; a stride pools the queries."""

    def __init__(self, dim: int, dim_out: int, heads: int, q_stride: int, units: bool) -> None:
        super().__init__()
        self.dim_out, self.heads, self.q_stride, self.units = dim_out, heads, q_stride, units
        self.head_dim = dim_out // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim_out), nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor, num_windows: int) -> Tensor:
        B, N, _ = x.shape
        num_windows = num_windows if self.units else 1
        qkv = self.qkv(x).reshape(B, -1, num_windows, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(3, 0, 4, 2, 1, 5)
        if self.q_stride > 1:
            q = q.view(B, self.heads, num_windows, self.q_stride, -1, self.head_dim)
            q = q.max(dim=3).values
        x = F.scaled_dot_product_attention(q, k, v)
        x = x.transpose(1, 3).reshape(B, -1, self.dim_out)
        return self.proj(x)


class UnitBlock(nn.Module):
    def __init__(self, dim: int, dim_out: int, heads: int, q_stride: int, units: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim_out, eps=1e-6)
        self.attn = MaskUnitAttention(dim, dim_out, heads, q_stride, units)
        self.mlp = nn.Sequential(
            nn.Linear(dim_out, 2 * dim_out), nn.GELU(), nn.Linear(2 * dim_out, dim_out)
        )
        self.shortcut = nn.Linear(dim, dim_out) if dim != dim_out else None
        self.stride = q_stride

    def forward(self, x: Tensor, num_windows: int) -> Tensor:
        x_norm = self.norm1(x)
        if self.shortcut is not None:
            wide = self.shortcut(x_norm)
            x = wide.view(x.shape[0], self.stride, -1, wide.shape[-1]).max(dim=1).values
        x = x + self.attn(x_norm, num_windows)
        return x + self.mlp(self.norm2(x))


class MaskUnits(nn.Module):
    """Images (B, 3, 32, 32) → logits (B, 7), a map (B, 32, 4, 4) and the units that stay."""

    def __init__(self, stay: int = 3) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, DIM, 7, stride=4, padding=3)
        self.pos_embed = nn.Parameter(torch.randn(1, SIDE * SIDE, DIM) * 0.5)
        self.unroll = Unroll([SIDE, SIDE], [STRIDE, STRIDE])
        self.mu_size = 16
        self.blocks = nn.ModuleList(
            [
                UnitBlock(DIM, DIM, 1, 1, True),
                UnitBlock(DIM, 2 * DIM, 2, 4, True),
                UnitBlock(2 * DIM, 2 * DIM, 2, 1, False),
            ]
        )
        self.mask_token = nn.Parameter(torch.randn(1, 1, 2 * DIM))
        self.norm, self.head = nn.LayerNorm(2 * DIM), nn.Linear(2 * DIM, 7)
        self.stay = stay

    def choose(self, x: Tensor) -> Tensor:
        """Returns which mask units (B, 4) have the largest features."""
        B, N, _ = x.shape
        num_windows = N // self.mu_size
        energy = x.square().mean(-1).view(B, self.mu_size, num_windows).mean(1)
        ids_shuffle = torch.argsort(energy, dim=1, descending=True)
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        mask = torch.zeros([B, num_windows], device=x.device)
        mask[:, : self.stay] = 1
        return torch.gather(mask, dim=1, index=ids_restore).bool()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.patch_embed(image).flatten(2).transpose(2, 1) + self.pos_embed
        x = self.unroll(x)
        mask = self.choose(x)
        num_windows, width = mask.shape[1], x.shape[2]
        x = x[mask[:, None, :, None].expand(-1, self.mu_size, -1, width).flatten(1, 2)]
        x = x.view(len(mask), -1, width)
        for block in self.blocks[:2]:
            x = block(x, self.stay)
        x = self.blocks[2](x, self.stay)
        x = self.norm(x)
        per = x.shape[1] // self.stay
        full = self.mask_token.repeat(len(mask), per * num_windows, 1)
        spread = mask[:, None, :].expand(-1, per, -1).reshape(len(mask), -1)
        full = full.clone()
        full[spread] = x.reshape(-1, x.shape[-1])
        dense = reroll(full, [SIDE // 2, SIDE // 2], [STRIDE])
        return {
            "logits": self.head(x.mean(dim=1)),
            "map": dense.permute(0, 3, 1, 2),
            "units": mask,
        }


def build(batch: int = 2, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """64 tokens in 4 units, of which 3 stay: 48, which pool to 12."""
    torch.manual_seed(seed)
    return MaskUnits().eval(), (torch.zeros(batch, 3, 32, 32),)
