"""A model with registers whose dropped tokens come back for a dense answer.

Two stages drop tokens, the second keeps a dropped token's last features; the decoder puts the kept
ones, the dropped ones and a learned token where nothing is known into a map, and doubles it twice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, REGISTERS, PATCHES = 24, 2, 16


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(DIM) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(self.gamma)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.q_norm, self.k_norm = nn.LayerNorm(8), nn.LayerNorm(8)
        self.w12, self.w3 = nn.Linear(DIM, 64), nn.Linear(32, DIM)
        self.ls1, self.ls2 = LayerScale(), LayerScale()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (B, N, C) and the mean of the keys over the heads, (B, N, 8)."""
        B, N, C = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(B, N, 3, 3, C // 3).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
        x = x + self.ls1(self.proj(out.transpose(1, 2).reshape(B, N, C)))
        x1, x2 = self.w12(self.norm2(x)).chunk(2, dim=-1)
        return x + self.ls2(self.w3(F.silu(x1) * x2)), k.mean(1)


def novelty(keys: Tensor) -> Tensor:
    """Returns how little each patch is like the others, (B, N)."""
    unit = F.normalize(keys, dim=-1)
    alike = unit @ unit.mT
    alike.diagonal(dim1=1, dim2=2).zero_()
    return -alike.sum(-1) / (keys.shape[1] - 1)


class DenseRestore(nn.Module):
    """Images (B, 3, 16, 16) → a map (B, 4, 16, 16) and how often a place was kept, (B, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, DIM, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM) * 0.3)
        self.register_tokens = nn.Parameter(torch.randn(1, REGISTERS, DIM) * 0.3)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + PATCHES, DIM) * 0.3)
        self.mask_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.norm = nn.LayerNorm(DIM)
        self.upscale = nn.ConvTranspose2d(DIM, 16, 2, 2)
        self.classify = nn.Conv2d(16, 4, 1)

    def drop(self, x: Tensor, keys: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, ...]:
        special, patches = x[:, : 1 + REGISTERS], x[:, 1 + REGISTERS :]
        scores = novelty(keys[:, 1 + REGISTERS :])
        values, order = scores.sort(dim=1, descending=True)
        keep_idx, drop_idx = order[:, :keep], order[:, keep:]
        gate = torch.sigmoid(values[:, :keep]).unsqueeze(-1)
        kept = torch.take_along_dim(patches, keep_idx.unsqueeze(-1), dim=1) * gate
        dropped = torch.take_along_dim(patches, drop_idx[..., None], dim=1)
        now, gone = ids.gather(1, keep_idx), ids.gather(1, drop_idx)
        return torch.cat([special, kept], dim=1), now, dropped, gone

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        B, _, H, W = x.shape
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(B, -1, -1), x), dim=1) + self.pos_embed
        registers = self.register_tokens.expand(B, -1, -1)
        x = torch.cat((x[:, :1], registers, x[:, 1:]), dim=1)
        ids = torch.arange(PATCHES, device=x.device).expand(B, PATCHES)
        count = torch.zeros(B, PATCHES, dtype=torch.long)
        x, keys = self.blocks[0](x)
        x, ids, _, _ = self.drop(x, keys, ids, 10)
        count.scatter_add_(1, ids, torch.ones_like(ids))
        x, keys = self.blocks[1](x)
        x, ids, dropped, gone = self.drop(x, keys, ids, 6)
        count.scatter_add_(1, ids, torch.ones_like(ids))
        x, _ = self.blocks[2](x)
        x = self.norm(x)
        full = self.mask_token.expand(B, PATCHES, -1).clone()
        full.scatter_(1, ids.unsqueeze(-1).expand(-1, -1, DIM), x[:, 1 + REGISTERS :])
        rows = torch.arange(B).view(-1, 1).expand_as(gone)
        full[rows, gone] = self.norm(dropped)
        full = full + x[:, 0].unsqueeze(1)
        maps = full.transpose(1, 2).reshape(B, DIM, H // 4, W // 4)
        maps = F.gelu(self.upscale(maps))
        maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
        return self.classify(maps), count


def build(batch: int = 2, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """10, then 6 of 16 patches stay beside a class token and two registers."""
    torch.manual_seed(seed)
    return DenseRestore().eval(), (torch.zeros(batch, 3, 16, 16),)
