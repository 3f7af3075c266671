"""CrossGET-like merging (Shi et al. 2024): matching in the whole graph, led by a cross token.

The cross token stands behind the class token. Tokens close to it are important; a token is worth
merging where it is unimportant and alike to one that is more important (a triangular mask in sorted
order). The r best go into the most alike of those that stay, weighted by a softmax of importance.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from models.zoo.vit import Attention, Block, Vit, images, seeded
from torch import Tensor, nn


class SizedAttention(Attention):
    """Takes log sizes; returns the head mean of the keys beside x."""

    def forward(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = self.heads(x)
        attn = (q @ k.transpose(-2, -1)) * self.scale
        if size is not None:
            attn = attn + size.log()[:, None, None, :]
        return self.join(attn.softmax(dim=-1) @ v), k.mean(dim=1)


def complete_graph_matching(metric: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matches the tokens (B, N, C) behind class and cross token.

    Returns:
        Sources (B, r), what stays (B, N - 2 - r), each source's place in it (B, r), and the
        importance of all (B, N - 2).
    """
    metric = F.normalize(metric, dim=-1)
    cross, tokens = metric[:, 1:2], metric[:, 2:]
    B, N, _ = tokens.shape
    importance = (tokens @ cross.transpose(1, 2)).squeeze(-1)
    order = importance.argsort(dim=-1)
    batch = torch.arange(B)[:, None]
    ranked = tokens[batch, order]
    sim = ranked @ ranked.transpose(1, 2)
    towards = torch.triu(torch.ones(N, N, dtype=torch.bool), diagonal=1)
    masked = sim.masked_fill(~towards, -1.0)
    best = masked.max(dim=-1).values
    rank = torch.gather(importance, 1, order) - best
    picked = rank.topk(N, dim=-1, largest=False).indices
    src, unm = picked[:, :r], torch.sort(picked[:, r:], dim=-1).values
    among = sim.gather(1, src[..., None].expand(-1, -1, N))
    among = among.gather(2, unm[:, None, :].expand(-1, r, -1))
    return order.gather(1, src), order.gather(1, unm), among.argmax(dim=-1), importance


def merge(
    x: Tensor, size: Tensor, match: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Merges x (B, N, C) and adds up sizes (B, N)."""
    src_idx, unm_idx, dst_idx, importance = match
    special, tokens = x[:, :2], x[:, 2:]
    C = x.shape[-1]
    weight = importance.exp()
    together = torch.cat([tokens * weight[..., None], weight[..., None], size[:, 2:, None]], dim=-1)
    src = together.gather(1, src_idx[..., None].expand(-1, -1, C + 2))
    dst = together.gather(1, unm_idx[..., None].expand(-1, -1, C + 2))
    total = dst.scatter_add(1, dst_idx[..., None].expand(-1, -1, C + 2), src)
    merged = total[..., :C] / total[..., C : C + 1]
    return torch.cat([special, merged], dim=1), torch.cat([size[:, :2], total[..., -1]], dim=1)


class CrossBlock(Block):
    """Merges r tokens between attention and MLP; passes the sizes on."""

    r: int

    def forward(self, inputs: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, size = inputs
        attended, metric = self.attn(self.norm1(x), size)
        x = x + attended
        size = x.new_ones(x.shape[:2]) if size is None else size
        x, size = merge(x, size, complete_graph_matching(metric, self.r))
        return x + self.mlp(self.norm2(x)), size


class CrossVit(Vit):
    """Returns the logits and the cross token."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        tokens, _ = nn.Sequential(*self.blocks)((self.embed(x), None))
        tokens = self.norm(tokens)
        return {"logits": self.head(tokens[:, 0]), "cross": tokens[:, 1]}


def build(seed: int = 0, r: int = 5) -> tuple[nn.Module, Tensor]:
    """Five tokens go in each of four blocks."""
    model = seeded(seed, distilled=True)
    model.__class__ = CrossVit
    for block in model.blocks:
        assert isinstance(block, Block)
        block.__class__, block.attn.__class__ = CrossBlock, SizedAttention
        block.r = r  # type: ignore[assignment]
    return model, images()
