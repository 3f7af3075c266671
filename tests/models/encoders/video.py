"""A video encoder: tubelets, attention in time and in space, and frames that merge into one.

Tokens of the other frames merge into those of a frame in the middle before the attention and come
back behind it; in the last block what differs least from its place one frame ago is dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

DIM, HEADS, FRAMES, PLACES = 24, 2, 4, 4


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = HEADS, (DIM // HEADS) ** -0.5
        self.to_qkv = nn.Linear(DIM, DIM * 3, bias=False)
        self.to_out = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (rearrange(part, "b n (h d) -> (b h) n d", h=self.heads) for part in qkv)
        sim = torch.einsum("b i d, b j d -> b i j", q * self.scale, k)
        out = torch.einsum("b i j, b j d -> b i d", sim.softmax(dim=-1), v)
        return self.to_out(rearrange(out, "(b h) n d -> b n (h d)", h=self.heads))


Move = Callable[[Tensor], Tensor]


def match_frames(metric: Tensor, frames: int, target: int, ratio: float) -> tuple[Move, Move]:
    """Matches tokens (B, F · N, C) of all other frames with those of one.

    Returns:
        What merges (B, F · N, C) into (B, fewer, C), and what undoes it.
    """
    B, N, _ = metric.shape
    per = N // frames
    with torch.no_grad():
        index = torch.arange(N, device=metric.device)
        is_target = index // per == target
        a_idx = index[~is_target].view(1, -1, 1).expand(B, -1, 1)
        b_idx = index[is_target].view(1, -1, 1).expand(B, -1, 1)

        def split(x: Tensor) -> tuple[Tensor, Tensor]:
            C = x.shape[-1]
            src = torch.gather(x, 1, a_idx.expand(B, N - per, C))
            dst = torch.gather(x, 1, b_idx.expand(B, per, C))
            return src, dst

        metric = metric / metric.norm(dim=-1, keepdim=True)
        a, b = split(metric)
        scores = a @ b.transpose(-1, -2)
        r = min(a.shape[1], int(a.shape[1] * ratio))
        node_max, node_idx = scores.max(dim=-1)
        edge_idx = node_max.argsort(dim=-1, descending=True)[..., None]
        unm_idx, src_idx = edge_idx[..., r:, :], edge_idx[..., :r, :]
        dst_idx = torch.gather(node_idx[..., None], dim=-2, index=src_idx)

    def merge(x: Tensor) -> Tensor:
        src, dst = split(x)
        n, t1, c = src.shape
        unm = src.gather(-2, unm_idx.expand(n, t1 - r, c))
        src = src.gather(-2, src_idx.expand(n, r, c))
        dst = dst.scatter_reduce(-2, dst_idx.expand(n, r, c), src, reduce="mean")
        return torch.cat([unm, dst], dim=1)

    def unmerge(x: Tensor) -> Tensor:
        unm_len = unm_idx.shape[1]
        unm, dst = x[..., :unm_len, :], x[..., unm_len:, :]
        _, _, c = unm.shape
        src = dst.gather(-2, dst_idx.expand(B, r, c))
        out = torch.zeros(B, N, c, device=x.device, dtype=x.dtype)
        out.scatter_(dim=-2, index=b_idx.expand(B, per, c), src=dst)
        a_wide = a_idx.expand(B, N - per, 1)
        out.scatter_(-2, a_wide.gather(1, unm_idx).expand(B, unm_len, c), unm)
        out.scatter_(-2, a_wide.gather(1, src_idx).expand(B, r, c), src)
        return out

    return merge, unmerge


class Block(nn.Module):
    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.temporal_norm1, self.norm1, self.norm2 = (nn.LayerNorm(DIM) for _ in range(3))
        self.temporal_attn, self.attn = Attention(), Attention()
        self.temporal_fc = nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))
        self.ratio = ratio

    def forward(self, x: Tensor, B: int, T: int) -> Tensor:
        xt = rearrange(x, "b (t n) m -> (b n) t m", b=B, t=T)
        res = self.temporal_attn(self.temporal_norm1(xt))
        x = x + self.temporal_fc(rearrange(res, "(b n) t m -> b (t n) m", b=B, t=T))
        normed = self.norm1(x)
        merge, unmerge = match_frames(normed, T, T // 2, self.ratio)
        x = x + unmerge(self.attn(merge(normed)))
        return x + self.mlp(self.norm2(x))


class VideoEncoder(nn.Module):
    """Clips (B, 3, 8, 16, 16) → logits (B, 6) and the tokens that stayed, (B, 10)."""

    def __init__(self, keep: int = 6) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, DIM, kernel_size=(2, 8, 8), stride=(2, 8, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, PLACES, DIM) * 0.4)
        self.time_embed = nn.Parameter(torch.randn(1, FRAMES, DIM) * 0.4)
        self.blocks = nn.ModuleList([Block(0.5), Block(0.75)])
        self.last, self.norm = Attention(), nn.LayerNorm(DIM)
        self.keep, self.head = keep, nn.Linear(DIM, 6)

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        x = self.proj(clip)
        B, _, T, H, W = x.shape
        x = rearrange(x, "b c t h w -> (b t) (h w) c") + self.pos_embed
        x = rearrange(x, "(b t) n m -> (b n) t m", b=B, t=T) + self.time_embed
        x = rearrange(x, "(b n) t m -> b (t n) m", b=B, t=T)
        for blk in self.blocks:
            x = blk(x, B, T)
        pixels = rearrange(clip, "b c (t p) (h q) (w r) -> b t (h w) (p q r c)", p=2, q=8, r=8)
        moved = (pixels[:, 1:] - pixels[:, :-1]).abs().mean(dim=-1)
        moved = rearrange(moved, "b t n -> b (t n)")
        _, moving = torch.topk(moved, self.keep, dim=-1)
        first = torch.arange(H * W, device=x.device).expand(B, -1)
        stays = torch.cat([first, moving.sort(dim=-1).values + H * W], dim=-1)
        x = torch.stack([frame[ids] for frame, ids in zip(x, stays, strict=True)])
        x = x + self.last(self.norm(x))
        return self.head(x.mean(dim=1)), stays


def build(batch: int = 2, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """16 tokens merge into 10, then 7, and come back; 10 of them stay at the end."""
    torch.manual_seed(seed)
    return VideoEncoder().eval(), (torch.zeros(batch, 3, 8, 16, 16),)
