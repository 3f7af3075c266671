"""A small Vision Transformer for 8 × 8 digits that merges tokens while it runs.

    image (B, 1, 8, 8) → 16 patches of 2 × 2 pixels + a class token → blocks → class logits (B, 10)

Every block attends, and a block with ``merge`` > 0 then merges that many of its tokens into the
tokens most like them, so the blocks after it have less to do. The method is that of Bolya et al.,
"Token Merging: Your ViT But Faster" (ICLR 2023), written into the model's own forward.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention in which a token that stands for many weighs as many.

    Args:
        width: Channels of a token, C.
        heads: Number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the attended tokens (B, N, C) and the head mean of the keys (B, N, C / heads).

        Args:
            x: Tokens, (B, N, C).
            size: How many patches each token stands for, (B, N, 1); None while each is one.
        """
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(-2, -1) * self.scale
        if size is not None:
            scores = scores + size.log().reshape(batch, 1, 1, tokens)
        mixed = scores.softmax(dim=-1) @ values
        return self.project(mixed.transpose(1, 2).reshape(batch, tokens, width)), keys.mean(dim=1)


class Block(nn.Module):
    """Attention, the merging of ``merge`` tokens, and an MLP.

    Args:
        width: Channels of a token, C.
        heads: Number of heads.
        merge: How many tokens this block merges away.
    """

    def __init__(self, width: int, heads: int, merge: int) -> None:
        super().__init__()
        self.merge = merge
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Takes and returns tokens (B, N, C) and their sizes (B, N, 1); N shrinks by ``merge``."""
        attended, keys = self.attention(self.norm1(x), size)
        x = x + attended
        if self.merge:
            size = torch.ones_like(x[..., :1]) if size is None else size
            x, size = merge_alike(x, size, keys, self.merge)
        return x + self.mlp(self.norm2(x)), size


def merge_alike(x: Tensor, size: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merges the ``count`` even tokens that are most like an odd token into it.

    A merged token is the mean of its parts, weighted by how many patches each stands for. The
    class token, at position 0, stays as it is.

    Args:
        x: Tokens, (B, N, C).
        size: How many patches each token stands for, (B, N, 1).
        keys: What the tokens are compared by, (B, N, D).
        count: The number of tokens to merge away, r.

    Returns:
        Tokens (B, N - r, C) and their sizes (B, N - r, 1): the class token, the even tokens that
        stay, the odd tokens.
    """
    with torch.no_grad():
        keys = keys / keys.norm(dim=-1, keepdim=True)
        likeness = keys[:, ::2] @ keys[:, 1::2].transpose(-2, -1)
        likeness[:, 0] = -torch.inf
        best, partner = likeness.max(dim=-1)
        order = best.argsort(dim=-1, descending=True)
        merged = order[:, :count, None]
        kept = order[:, count:].sort(dim=-1).values[..., None]
        target = partner[..., None].gather(1, merged)

    def merge(tokens: Tensor) -> Tensor:
        even, odd = tokens[:, ::2], tokens[:, 1::2]
        width = tokens.shape[-1]
        stay = even.gather(1, kept.expand(-1, -1, width))
        go = even.gather(1, merged.expand(-1, -1, width))
        return torch.cat([stay, odd.scatter_add(1, target.expand(-1, -1, width), go)], dim=1)

    total = merge(size)
    return merge(x * size) / total, total


class DigitsViT(nn.Module):
    """Classifies images (B, 1, 8, 8) with values from 0 to 1 into ten digits.

    Args:
        width: Channels of a token.
        heads: Number of heads.
        merge: How many tokens each block merges away, one number per block; all 0 is a plain ViT.
    """

    def __init__(
        self, width: int = 64, heads: int = 4, merge: tuple[int, ...] = (0, 3, 3, 3, 0)
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, count) for count in merge)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the logits, (B, 10)."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        size = None
        for block in self.blocks:
            x, size = block(x, size)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits


def build() -> DigitsViT:
    """The model with fresh weights: what ``--builder digits_vit:build`` names."""
    return DigitsViT()
