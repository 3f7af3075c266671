"""Small ViTs that keep as many tokens as the image says, at batch 1, as published code does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as f

WIDTH, HEADS, CLASSES = 16, 2, 5


class Block(nn.Module):
    """A pre-norm block on x (1, N, 16), which leaves its attention in ``probabilities``."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.fused = fused
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def attention(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Returns (1, N, 16), the probabilities (1, 2, N, N) if not fused, and v."""
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            out, probabilities = f.scaled_dot_product_attention(q, k, v), None
        else:
            probabilities = (q @ k.transpose(-2, -1) * 12).softmax(dim=-1)
            out = probabilities @ v
        return self.proj(out.transpose(1, 2).reshape(b, n, c)), probabilities, v

    def forward(self, x: Tensor) -> Tensor:
        """Returns (1, N', 16)."""
        x = x + self.attention(self.norm1(x))[0]
        return x + self.mlp(self.norm2(x))


class SampledBlock(Block):
    """Adaptive token sampling: inverse-transform sampling on the class token's attention."""

    def __init__(self, samples: int) -> None:
        super().__init__(fused=False)
        self.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        """Returns (1, 1 + at most ``samples``, 16)."""
        out, attention, v = self.attention(self.norm1(x))
        x = x + out
        assert attention is not None
        length = v.transpose(1, 2).flatten(2).norm(dim=-1)
        significance = attention[:, :, 0, 1:].mean(1) * length[:, 1:]
        significance = significance / significance.sum(dim=1, keepdim=True)
        cdf = significance.cumsum(dim=1)
        steps = (torch.arange(self.samples) + 0.5) / self.samples
        nearest = (cdf[:, None, :] - steps[None, :, None]).abs().argmin(dim=-1)
        kept = torch.unique(nearest[0]) + 1  # sampled here
        kept = torch.cat([torch.zeros(1, dtype=torch.long), kept])
        x = x[:, kept]
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """x (1, 12, 16), tokens already → (1, 5), with a class token and blocks of some kind."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.2)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (1, 5)."""
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Halting(Vit):
    """Drops the tokens whose summed halting score passes a threshold; pools what is left."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (1, 5)."""
        spent = torch.zeros(x.shape[:2])
        pooled = torch.zeros(x.shape[0], WIDTH)
        for block in self.blocks:
            x = block(x)
            spent = spent + torch.sigmoid(2 * x[..., 0] - 1)
            going_on = (spent < 0.7)[0]
            x = x[:, going_on]  # halted here
            spent = spent[:, going_on]
            pooled = pooled + x.sum(dim=1) / x.shape[1]
        return self.head(self.norm(pooled)) + x.mean(dim=1)[:, :CLASSES]


class ConstantMask(Vit):
    """Keeps tokens by masks that are known beforehand, a buffer and one made in forward."""

    def __init__(self) -> None:
        super().__init__([Block(), Block()])
        self.register_buffer("mask", torch.arange(12) % 3 > 0)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (1, 5)."""
        x = super().forward(x[:, self.mask]) + x[:, torch.arange(x.shape[1]) < 4].mean(1)[:, :5]
        return x


class OneRow(Vit):
    """Reads one row at a position that the image says."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (1, 5)."""
        return super().forward(x) + x[0, x[0].norm(dim=-1).argmax()][None, :CLASSES]


class Branching(Vit):
    """Takes another way where the image is dark, and adds a constant where few tokens are left."""

    def __init__(self) -> None:
        super().__init__([Block()])
        self.dark = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (1, 5)."""
        kept = x[:, x[0, :, 0] > 0]
        if x.mean() < 0:  # dark here
            kept = self.dark(kept) * torch.tensor([1.0, 2.0]).repeat(WIDTH // 2)
            kept = kept[:, kept[0, :, 1] > -1]
        result = super().forward(kept)
        if kept.shape[1] < 4:  # few here
            result = result + 1.0
        return result


class Deviation(Vit):
    """Mixes the kept tokens in a way that padding changes."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (1, 5)."""
        kept = x[:, x[0, :, 0] > 0]
        return self.head(kept.median(dim=1).values)  # mixed here


def sampled() -> tuple[nn.Module, Tensor]:
    return _model(lambda: Vit([Block(), SampledBlock(6), SampledBlock(4), Block()]))


def halting() -> tuple[nn.Module, Tensor]:
    return _model(lambda: Halting([Block(), Block(fused=False), Block()]))


def constant_mask() -> tuple[nn.Module, Tensor]:
    return _model(ConstantMask)


def one_row() -> tuple[nn.Module, Tensor]:
    return _model(lambda: OneRow([Block()]))


def branching() -> tuple[nn.Module, Tensor]:
    return _model(Branching)


def deviation() -> tuple[nn.Module, Tensor]:
    return _model(lambda: Deviation([]))


def _model(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return make().eval(), torch.zeros(1, 12, WIDTH)
