"""An encoder that prunes by boolean masks of a fixed count, three times, and says what it kept.

Each pruning is spelled otherwise: by a mask of patches behind a True for the class token, by
``masked_select``, and by a mask over the original places from which two masks are subtracted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

DIM, HEADS, SIDE, PATCH = 32, 4, 16, 4


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int = HEADS, qkv_bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (B, N, C) and what the class token sees of the patches, (B, N - 1)."""
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1)
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x), attn[:, :, 0, 1:].mean(dim=1)


class Block(nn.Module):
    def __init__(self, dim: int, keep_ratio: float, spelling: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.keep_ratio, self.spelling = keep_ratio, spelling

    def prune(self, x: Tensor, scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps the patches of x (B, N, C) that are seen most, and their places (B, N - 1)."""
        B, N, C = x.shape
        left = math.ceil(self.keep_ratio * (N - 1))
        _, idx = torch.topk(scores, left, dim=1, largest=True, sorted=True)
        keep_mask = torch.zeros_like(scores, dtype=torch.bool)
        keep_mask.scatter_(1, idx, True)
        if self.spelling == "selected":
            rows = torch.masked_select(x[:, 1:], keep_mask.unsqueeze(-1)).view(B, left, C)
            return torch.cat((x[:, 0:1], rows), dim=1), ids.masked_select(keep_mask).view(B, -1)
        if self.spelling == "places":
            alive = torch.zeros(B, (SIDE // PATCH) ** 2, dtype=torch.bool, device=x.device)
            alive[torch.arange(B).unsqueeze(1), ids] = True
            gone = torch.zeros_like(alive)
            gone[torch.arange(B)[:, None], ids[~keep_mask].reshape(B, N - 1 - left)] = True
            full = x.new_zeros(B, alive.shape[1], C)
            full[alive] = x[:, 1:].reshape(-1, C)
            stays = alive & ~gone
            where = torch.nonzero(stays, as_tuple=True)
            kept = full[where].view(B, left, C)
            return torch.cat([x[:, :1], kept], dim=1), where[1].view(B, left)
        mask = torch.cat([torch.ones(B, 1, dtype=torch.bool, device=x.device), keep_mask], dim=1)
        return x[mask].view(B, -1, C), ids[keep_mask].view(B, -1)

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        tmp, scores = self.attn(self.norm1(x))
        x = x + tmp
        x, ids = self.prune(x, scores, ids)
        return x + self.mlp(self.norm2(x)), ids


class MaskPruner(nn.Module):
    """Images (B, 3, 16, 16) → logits (B, 10), places (B, 4) and what was kept, (B, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, DIM, kernel_size=PATCH, stride=PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM) * 0.5)
        self.pos_embed = nn.Parameter(torch.randn(1, (SIDE // PATCH) ** 2 + 1, DIM) * 0.5)
        stages = ((0.7, "mask"), (0.6, "selected"), (0.5, "places"))
        self.blocks = nn.ModuleList([Block(DIM, *stage) for stage in stages])
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, 10)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        B, L, _ = x.shape
        x = torch.cat((self.cls_token.expand(B, -1, -1), x), dim=1) + self.pos_embed
        ids = torch.arange(L, device=x.device).unsqueeze(0).repeat(B, 1)
        for blk in self.blocks:
            x, ids = blk(x, ids)
        kept = torch.zeros(B, L, dtype=torch.bool).scatter(1, ids, True)
        return self.head(self.norm(x)[:, 0]), ids, kept


def build(batch: int = 2, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """16 patches become 12, then 8, then 4."""
    torch.manual_seed(seed)
    return MaskPruner().eval(), (torch.zeros(batch, 3, SIDE, SIDE),)
