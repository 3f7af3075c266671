"""A small plain ViT with the attribute names that published patches expect of timm's.

Images (B, 3, 48, 48) in patches of 8 pixels: 36 patches and a class token, with a distillation
token behind it on request. Other sizes, a real model's among them, are options of ``Vit``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDTH, HEADS, DEPTH, CLASSES = 48, 3, 4, 10
IMAGE, PATCH = 48, 8
PATCHES = (IMAGE // PATCH) ** 2
BATCH = 2


class Attention(nn.Module):
    """Self-attention whose probabilities are computed by hand: (B, N, C) → (B, N, C)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Any:
        """Returns (B, N, C); a patched attention may return more."""
        q, k, v = self.heads(x)
        attn = self.attn_drop((q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1))
        return self.join(attn @ v)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q, k and v, each (B, H, N, D)."""
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def join(self, x: Tensor) -> Tensor:
        """Takes the heads' results (B, H, N, D), returns (B, N, C)."""
        B, H, N, D = x.shape
        result: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).reshape(B, N, H * D)))
        return result


class Block(nn.Module):
    """Attention and MLP, both behind a norm and around a residual."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int = 2) -> None:
        super().__init__()
        hidden = mlp_ratio * dim
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.drop_path = nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Any:
        """Takes and returns (B, N, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Vit(nn.Module):
    """Images (B, 3, image, image) → logits (B, classes) of the class token."""

    def __init__(
        self,
        depth: int = DEPTH,
        distilled: bool = False,
        dim: int = WIDTH,
        *,
        num_heads: int = HEADS,
        mlp_ratio: int = 2,
        image: int = IMAGE,
        patch: int = PATCH,
        classes: int = CLASSES,
    ) -> None:
        super().__init__()
        self.num_patches = (image // patch) ** 2
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.5)
        self.dist_token = nn.Parameter(torch.randn(1, 1, dim) * 0.5) if distilled else None
        self.pos_embed = nn.Parameter(torch.randn(1, self.num_patches + 1 + distilled, dim) * 0.5)
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Returns the first block's input, (B, N, C): 37 tokens of the default image."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        special = [self.cls_token] + ([] if self.dist_token is None else [self.dist_token])
        tokens = [token.expand(x.shape[0], -1, -1) for token in special]
        return torch.cat((*tokens, x), dim=1) + self.pos_embed

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the tokens behind the last norm."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.norm(x)
        return result

    def forward(self, x: Tensor) -> Any:
        """Returns (B, classes); a patched model may return more."""
        return self.head(self.forward_features(x)[:, 0])


def attend_by_einsum(mha: Attention, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The attention of (B, N, C) spelled with einsum.

    Returns:
        Its result (B, N, C), its probabilities (B, H, N, N) and its keys (B, H, N, D).
    """
    query, key, value = mha.heads(h)
    logits = torch.einsum("bhqd,bhkd->bhqk", query * mha.scale, key)
    shares = torch.nn.functional.softmax(logits, -1)
    return mha.join(torch.einsum("bhqk,bhkd->bhqd", shares, value)), shares, key


def images(batch: int = BATCH, image: int = IMAGE) -> Tensor:
    """An example input."""
    return torch.zeros(batch, 3, image, image)


def seeded(seed: int, **options: Any) -> Vit:
    """A ViT with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return Vit(**options).eval()


def patch(
    model: Vit,
    info: dict[str, Any],
    block: type[Block] | None = None,
    attention: type[Attention] | None = None,
) -> None:
    """Swaps the classes of blocks and attentions in place and lets all blocks share one dict."""
    model._info = info  # type: ignore[assignment]
    for position, one in enumerate(model.blocks):
        assert isinstance(one, Block)
        one._info = info  # type: ignore[assignment]
        one.layer = position  # type: ignore[assignment]
        if block is not None:
            one.__class__ = block
        if attention is not None:
            one.attn.__class__ = attention
