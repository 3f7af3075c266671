"""Keeps what the class token sees most, and merges what is dropped into it in three ways.

A kept token takes its share of its nearest neighbours, weighed by attention, image by image in a
loop; the rest is clustered around its densest tokens, and each cluster is added up where
``index_add_`` and ``scatter_reduce_`` write.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C, HEADS = 24, 2


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.q, self.k, self.v, self.o = (nn.Linear(C, C) for _ in range(4))
        self.ffn = nn.Sequential(nn.Linear(C, 2 * C), nn.SiLU(), nn.Linear(2 * C, C))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (B, N, C), and queries and keys of all channels, (B, N, C)."""
        h = self.ln1(x)
        q, k, v = self.q(h), self.k(h), self.v(h)
        split = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v)]
        mixed = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        x = x + self.o(mixed)
        return x + self.ffn(self.ln2(x)), q, k


def complement(index: Tensor, count: int) -> Tensor:
    """Returns the places in 0 … count - 1 that are not among the index (B, K)."""
    every = torch.arange(count, device=index.device).expand(*index.shape[:-1], -1)
    taken = torch.scatter(every, -1, index, 0)
    taken, _ = torch.sort(taken, dim=-1)
    return taken[:, index.shape[-1] :]


def cluster(x: Tensor, num: int, k: int = 2) -> tuple[Tensor, Tensor]:
    """Clusters tokens (B, N, C) around their density peaks: centres (B, num), labels (B, N)."""
    B, N, dim = x.shape
    dist = torch.cdist(x, x) / dim**0.5
    near, _ = torch.topk(dist, k=k, dim=-1, largest=False)
    density = (-(near**2).mean(dim=-1)).exp()
    higher = (density[:, None, :] > density[:, :, None]).type(x.dtype)
    dist_max = dist.flatten(1).max(dim=-1)[0][:, None, None]
    apart, _ = (dist * higher + dist_max * (1 - higher)).min(dim=-1)
    _, index_down = torch.topk(apart * density, k=num, dim=-1)
    offset = torch.arange(B, device=x.device)[:, None] * N
    to_centres = dist.reshape(B * N, N)[(index_down + offset).reshape(-1)].view(B, num, N)
    labels = to_centres.argmin(dim=1)
    idx_batch = torch.arange(B, device=x.device)[:, None].expand(B, num)
    idx_tmp = torch.arange(num, device=x.device)[None, :].expand(B, num)
    labels[idx_batch.reshape(-1), index_down.reshape(-1)] = idx_tmp.reshape(-1)
    return index_down, labels


class NeighbourMerge(nn.Module):
    """Images (B, 3, 16, 16) → (B, 9, 32), the sizes of the clusters (B, 3), and the kept (B, 5)."""

    def __init__(self, keep: int = 5, clusters: int = 3, neighbours: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, C, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, C))
        self.places = nn.Parameter(torch.randn(1, 17, C) * 0.5)
        self.layers = nn.ModuleList([EncoderLayer() for _ in range(2)])
        self.project = nn.Linear(C, 32)
        self.keep, self.clusters, self.neighbours = keep, clusters, neighbours

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.embed(images).flatten(2).mT
        x = torch.cat([self.cls.repeat(len(x), 1, 1), x], dim=1) + self.places
        for layer in self.layers:
            x, q, k = layer(x)
        attn = (q @ k.transpose(-2, -1) * C**-0.5).softmax(dim=-1)
        cls_attn, features, keys = attn[:, 0, 1:], x[:, 1:], k[:, 1:]
        B, N, _ = features.shape
        _, idx = torch.topk(cls_attn, self.keep, dim=1, largest=True)
        index = idx.unsqueeze(-1).expand(-1, -1, C)
        kept, kept_keys = torch.gather(features, 1, index), torch.gather(keys, 1, index)
        rest = complement(idx, N)
        others, other_keys = (part[torch.arange(B)[:, None], rest] for part in (features, keys))
        other_attn = torch.gather(cls_attn, dim=1, index=rest)

        kept_keys, other_keys = F.normalize(kept_keys, p=2, dim=-1), F.normalize(other_keys, dim=-1)
        updated = torch.zeros_like(kept)
        for b in range(B):
            for i in range(self.keep):
                alike = torch.matmul(kept_keys[b, i].unsqueeze(0), other_keys[b].transpose(0, 1))
                _, near = torch.topk(alike, k=self.neighbours, dim=1, largest=True)
                near = near[0]
                weights = other_attn[b, near].unsqueeze(-1)
                updated[b, i] = kept[b, i] + torch.sum(others[b, near] * weights, dim=0)

        index_down, labels = cluster(others, self.clusters)
        flat = (labels + torch.arange(B)[:, None] * self.clusters).reshape(-1)
        total = others.new_zeros(B * self.clusters, C)
        total.index_add_(dim=0, index=flat, source=(others * other_attn[..., None]).reshape(-1, C))
        weight = other_attn.new_zeros(B * self.clusters, 1) + 1e-6
        weight.index_add_(0, flat, other_attn.reshape(-1, 1))
        merged = (total / weight).reshape(B, self.clusters, C)
        sizes = torch.zeros(B, self.clusters).scatter_reduce_(
            1, labels, torch.ones_like(other_attn), reduce="sum", include_self=False
        )
        strongest = torch.full((B, 1, C), -1e4).scatter_reduce_(
            1, torch.zeros_like(others, dtype=torch.long), others, reduce="amax"
        )
        tokens = torch.cat([updated, merged, strongest], dim=1)
        return self.project(tokens), sizes, idx.sort(dim=1).values


def build(batch: int = 2, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """5 of 16 patches stay, 11 become 3 clusters and one token of their largest features."""
    torch.manual_seed(seed)
    return NeighbourMerge().eval(), (torch.zeros(batch, 3, 16, 16),)
