"""Shifted windows whose tokens merge inside, and a dense map that every merge is undone for.

A pair of blocks attends in windows and in windows shifted around the border; then the windows whose
four tokens are most alike become one token each, a block attends among all, and the map comes back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

DIM, HEADS, GRID, WINDOW = 24, 3, 4, 2


class WindowAttention(nn.Module):
    """Attention in windows with a relative position bias; (windows, M², C)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = (DIM // HEADS) ** -0.5
        self.relative_position_bias_table = nn.Parameter(
            torch.randn((2 * WINDOW - 1) ** 2, HEADS) * 0.5
        )
        coords = torch.stack(
            torch.meshgrid([torch.arange(WINDOW), torch.arange(WINDOW)], indexing="ij")
        )
        coords_flatten = torch.flatten(coords, 1)
        relative = coords_flatten[:, :, None] - coords_flatten[:, None, :]
        relative = relative.permute(1, 2, 0).contiguous()
        relative[:, :, 0] += WINDOW - 1
        relative[:, :, 1] += WINDOW - 1
        relative[:, :, 0] *= 2 * WINDOW - 1
        self.register_buffer("relative_position_index", relative.sum(-1))
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        B_, N, _ = x.shape
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=HEADS)
        attn = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        attn = attn + bias.view(N, N, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            nW = mask.shape[0]
            attn = attn.view(B_ // nW, nW, HEADS, N, N) + mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, HEADS, N, N)
        attn = attn.softmax(dim=-1)
        return self.proj(rearrange(attn @ v, "b h n d -> b n (h d)"))


class SwinBlock(nn.Module):
    """A block on the map (B, H, W, C)."""

    def __init__(self, shift_size: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn, self.shift_size = WindowAttention(), shift_size
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def shifted_mask(self, like: Tensor) -> Tensor | None:
        """Returns (windows, M², M²): what lay apart before the shift sees nothing of the other."""
        if not self.shift_size:
            return None
        img_mask = torch.zeros((1, GRID, GRID, 1), device=like.device)
        slices = (
            slice(0, -WINDOW),
            slice(-WINDOW, -self.shift_size),
            slice(-self.shift_size, None),
        )
        cnt = 0
        for h in slices:
            for w in slices:
                img_mask[:, h, w, :] = cnt
                cnt += 1
        windows = rearrange(img_mask, "b (nh m) (nw n) 1 -> (b nh nw) (m n)", m=WINDOW, n=WINDOW)
        attn_mask = windows.unsqueeze(1) - windows.unsqueeze(2)
        return attn_mask.masked_fill(attn_mask != 0, -100.0).masked_fill(attn_mask == 0, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.norm1(x)
        if self.shift_size > 0:
            x = torch.roll(x, shifts=(-self.shift_size, -self.shift_size), dims=(1, 2))
        windows = rearrange(x, "b (nh m) (nw n) c -> (b nh nw) (m n) c", m=WINDOW, n=WINDOW)
        windows = self.attn(windows, self.shifted_mask(x))
        x = rearrange(
            windows,
            "(b nh nw) (m n) c -> b (nh m) (nw n) c",
            nh=GRID // WINDOW,
            nw=GRID // WINDOW,
            m=WINDOW,
        )
        if self.shift_size > 0:
            x = torch.roll(x, shifts=(self.shift_size, self.shift_size), dims=(1, 2))
        x = shortcut + x
        return x + self.mlp(self.norm2(x))


class WindowMerge(nn.Module):
    """Images (B, 3, 32, 32) → a map (B, 5, 4, 4) and the merged windows, (B, 2)."""

    def __init__(self, merged: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, DIM, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(DIM, DIM, 4, stride=4)
        )
        self.layers = nn.Sequential(SwinBlock(0), SwinBlock(1))
        self.merged = merged
        self.norm, self.mixing = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM)
        self.decode = nn.Linear(DIM, 5)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        x = rearrange(self.stem(pixel_values), "b c h w -> b h w c")
        x = self.layers(x)
        groups = rearrange(x, "b (nh m) (nw n) c -> b (nh nw) (m n) c", m=WINDOW, n=WINDOW)
        b, w, m, c = groups.shape
        unit = F.normalize(groups, dim=-1)
        alike = torch.einsum("bwic,bwjc->bwij", unit, unit)
        upper = torch.triu(torch.ones(m, m, device=x.device), diagonal=1).bool()
        alike = alike[:, :, upper].mean(-1)
        order = alike.argsort(dim=1, descending=True)
        merge, whole = order[:, : self.merged], order[:, self.merged :]
        means = groups.gather(1, repeat(merge, "b r -> b r m c", m=m, c=c)).mean(dim=2)
        singles = groups.gather(1, repeat(whole, "b r -> b r m c", m=m, c=c))
        tokens = torch.cat([means, rearrange(singles, "b r m c -> b (r m) c")], dim=1)
        q, k, v = self.mixing(self.norm(tokens)).chunk(3, dim=-1)
        size = torch.ones_like(tokens[..., 0])
        size[:, : self.merged] = m
        logits = q @ k.transpose(1, 2) * c**-0.5 + size.log()[:, None, :]
        tokens = tokens + logits.softmax(-1) @ v
        means, singles = tokens.split([self.merged, tokens.shape[1] - self.merged], dim=1)
        back = torch.zeros_like(groups)
        back.scatter_(
            1,
            repeat(merge, "b r -> b r m c", m=m, c=c),
            repeat(means, "b r c -> b r m c", m=m),
        )
        back = back.scatter(
            1,
            repeat(whole, "b r -> b r m c", m=m, c=c),
            rearrange(singles, "b (r m) c -> b r m c", m=m),
        )
        dense = rearrange(
            back, "b (nh nw) (m n) c -> b (nh m) (nw n) c", nh=GRID // WINDOW, m=WINDOW
        )
        return {
            "logits": rearrange(self.decode(dense), "b h w c -> b c h w"),
            "merged": merge.sort(dim=1).values,
        }


def build(batch: int = 2, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """16 tokens in four windows; two windows become one token each: 10 tokens."""
    torch.manual_seed(seed)
    return WindowMerge().eval(), (torch.zeros(batch, 3, 32, 32),)
