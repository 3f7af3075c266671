"""A tower for patches of several images in one row, with rotary places and a merger of 2 x 2.

Patches come in the order of the merger's groups, (P, 96); each image attends to itself alone; the
places of rows and columns turn queries and keys. Behind the first block a group that is seen little
is left out, as a whole, and what stays is merged group by group.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, HEADS, MERGE = 32, 2, 2


def rotate_half(x: Tensor) -> Tensor:
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turns queries and keys (P, H, D) by cos and sin (P, D)."""
    q_dtype, k_dtype = q.dtype, k.dtype
    q, k = q.float(), k.float()
    cos, sin = cos.unsqueeze(-2).float(), sin.unsqueeze(-2).float()
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed.to(q_dtype), k_embed.to(k_dtype)


class VisionRotaryEmbedding(nn.Module):
    inv_freq: Tensor

    def __init__(self, dim: int, theta: float = 100.0) -> None:
        super().__init__()
        inv_freq = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, seqlen: int) -> Tensor:
        seq = torch.arange(seqlen, device=self.inv_freq.device, dtype=self.inv_freq.dtype)
        return torch.outer(seq, self.inv_freq)


class PatchMerger(nn.Module):
    def __init__(self, context_dim: int, dim: int) -> None:
        super().__init__()
        self.hidden_size = context_dim * MERGE**2
        self.ln_q = nn.LayerNorm(context_dim, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(self.hidden_size, self.hidden_size),
            nn.GELU(),
            nn.Linear(self.hidden_size, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.mlp(self.ln_q(x).view(-1, self.hidden_size))
        return result


class VisionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(HIDDEN, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = nn.Linear(HIDDEN, HIDDEN * 3), nn.Linear(HIDDEN, HIDDEN)
        self.fc1, self.fc2 = nn.Linear(HIDDEN, 64), nn.Linear(64, HIDDEN)

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns (P, C) and the attention that each patch receives, (P,)."""
        seq_length = hidden_states.shape[0]
        states = self.norm1(hidden_states)
        q, k, v = self.qkv(states).reshape(seq_length, 3, HEADS, -1).permute(1, 0, 2, 3).unbind(0)
        q, k = apply_rotary(q, k, cos, sin)
        attention_mask = torch.full(
            [1, seq_length, seq_length],
            torch.finfo(q.dtype).min,
            device=q.device,
            dtype=q.dtype,
        )
        for i in range(1, len(cu_seqlens)):
            at = slice(cu_seqlens[i - 1], cu_seqlens[i])
            attention_mask[..., at, at] = 0
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        weights = torch.matmul(q, k.transpose(1, 2)) / (HIDDEN // HEADS) ** 0.5
        weights = F.softmax(weights + attention_mask, dim=-1, dtype=torch.float32).to(q.dtype)
        out = torch.matmul(weights, v).transpose(0, 1).reshape(seq_length, -1)
        hidden_states = hidden_states + self.proj(out)
        mlp = self.fc2(F.gelu(self.fc1(self.norm2(hidden_states)), approximate="tanh"))
        return hidden_states + mlp, weights.sum(dim=(0, 1))


class RotaryMerger(nn.Module):
    """Patches (images · 16, 96) → (images · 3, 40) and the groups that stay, (images, 3)."""

    grid_thw: Tensor

    def __init__(self, images: int, groups: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, HIDDEN, kernel_size=(2, 4, 4), stride=(2, 4, 4), bias=False)
        self.rotary_pos_emb = VisionRotaryEmbedding(HIDDEN // HEADS // 2)
        self.blocks = nn.ModuleList([VisionBlock() for _ in range(2)])
        self.merger = PatchMerger(HIDDEN, 40)
        self.register_buffer("grid_thw", torch.tensor([[1, 4, 4]] * images))
        self.groups = groups

    def rot_pos_emb(self, grid_thw: Tensor) -> Tensor:
        """Returns the angles of every patch, (P, D / 2)."""
        pos_ids = []
        for t, h, w in grid_thw:
            hpos_ids = torch.arange(h).unsqueeze(1).expand(-1, w)
            wpos_ids = torch.arange(w).unsqueeze(0).expand(h, -1)
            shape = (h // MERGE, MERGE, w // MERGE, MERGE)
            hpos_ids = hpos_ids.reshape(*shape).permute(0, 2, 1, 3).flatten()
            wpos_ids = wpos_ids.reshape(*shape).permute(0, 2, 1, 3).flatten()
            pos_ids.append(torch.stack([hpos_ids, wpos_ids], dim=-1).repeat(t, 1))
        ids = torch.cat(pos_ids, dim=0)
        max_grid_size = grid_thw[:, 1:].max()
        full: Tensor = self.rotary_pos_emb(max_grid_size)
        return full[ids].flatten(1)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        grid = self.grid_thw
        x = self.proj(pixel_values.view(-1, 3, 2, 4, 4)).view(-1, HIDDEN)
        angles = self.rot_pos_emb(grid)
        emb = torch.cat((angles, angles), dim=-1)
        cos, sin = emb.cos(), emb.sin()
        lengths = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
        cu_seqlens = F.pad(lengths.cumsum(dim=0, dtype=torch.int32), (1, 0), value=0)
        x, seen = self.blocks[0](x, cu_seqlens, cos, sin)
        images = grid.shape[0]
        by_group = seen.view(images, -1, MERGE**2).mean(-1)
        stay = by_group.topk(self.groups, dim=-1).indices.sort(dim=-1).values
        keep = torch.zeros_like(by_group, dtype=torch.bool).scatter_(1, stay, True)
        keep = keep.flatten().repeat_interleave(MERGE**2)
        x, cos, sin = x[keep], cos[keep], sin[keep]
        cu_seqlens = torch.arange(0, images + 1) * self.groups * MERGE**2
        x, _ = self.blocks[1](x, cu_seqlens, cos, sin)
        return self.merger(x), stay


def build(batch: int = 2, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """16 patches of an image in 4 groups, of which 3 stay: 12 patches, then 3 tokens."""
    torch.manual_seed(seed)
    return RotaryMerger(batch).eval(), (torch.zeros(batch * 16, 3 * 2 * 4 * 4),)
