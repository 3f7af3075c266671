"""Super Token attention (Huang et al. 2022, "Vision Transformer with Super Token Sampling").

A grid of super tokens starts as the means of windows. Each token is softly assigned to the nine
super tokens around its window, the super tokens become the means of what is assigned to them, and
this is repeated. Attention runs among the super tokens, and each token takes its share of them
back. The assignment is sparse: (B, windows, tokens of a window, 9).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Super tokens around a window: three by three.
AROUND = 9


def sample(x: Tensor, window: int, rounds: int) -> tuple[Tensor, Tensor]:
    """Samples the super tokens of a grid (B, C, H, W).

    Returns:
        The super tokens (B, C, H / window, W / window), and how much of each token of a window
        went to the nine around it, (B, windows, tokens of a window, 9).
    """
    B, C, H, W = x.shape
    rows, columns = H // window, W // window
    tokens = x.reshape(B, C, rows, window, columns, window).permute(0, 2, 4, 3, 5, 1)
    tokens = tokens.reshape(B, rows * columns, window * window, C)
    centres = F.adaptive_avg_pool2d(x, (rows, columns))
    for _ in range(rounds):
        affinity = (tokens @ _around(centres) * C**-0.5).softmax(-1)
        centres = _gathered(tokens.transpose(-1, -2) @ affinity, rows, columns)
        total = _gathered(affinity.sum(2, keepdim=True), rows, columns)
        centres = centres / (total + 1e-12)
    return centres, affinity


def _around(centres: Tensor) -> Tensor:
    """Returns the super tokens around each window, (B, windows, C, 9)."""
    B, C, rows, columns = centres.shape
    spread = F.unfold(centres, kernel_size=3, padding=1)
    return spread.reshape(B, C, AROUND, rows * columns).permute(0, 3, 1, 2)


def _gathered(parts: Tensor, rows: int, columns: int) -> Tensor:
    """Adds what all windows (B, windows, C, 9) give to each super token: (B, C, h, w)."""
    B, N, C, _ = parts.shape
    parts = parts.permute(0, 2, 3, 1).reshape(B, C * AROUND, N)
    return F.fold(parts, output_size=(rows, columns), kernel_size=3, padding=1)


class SuperTokenAttention(nn.Module):
    """(B, C, H, W) → the same, through (H / window) · (W / window) super tokens."""

    def __init__(self, dim: int, heads: int, window: int, rounds: int) -> None:
        super().__init__()
        self.window = window
        self.rounds = rounds
        self.heads = heads
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        size = self.window
        rows, columns = H // size, W // size
        centres, affinity = sample(x, size, self.rounds)
        around = _around(self._attend(centres))
        shared = (around @ affinity.transpose(-1, -2)).transpose(-1, -2)
        shared = shared.reshape(B, rows, columns, size, size, C).permute(0, 5, 1, 3, 2, 4)
        return shared.reshape(B, C, H, W)

    def _attend(self, centres: Tensor) -> Tensor:
        """Self-attention among the super tokens, (B, C, h, w) → the same."""
        B, C, rows, columns = centres.shape
        qkv = self.qkv(centres).reshape(B, self.heads, 3 * C // self.heads, rows * columns)
        q, k, v = qkv.chunk(3, dim=2)
        weights = (k.transpose(-1, -2) @ q * (C // self.heads) ** -0.5).softmax(-2)
        result: Tensor = self.proj((v @ weights).reshape(B, C, rows, columns))
        return result


class SuperTokenVit(nn.Module):
    """Images (B, 3, H, W) → logits; a convolution, Super Token attention and an MLP a block."""

    def __init__(self, dim: int = 16, depth: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 4, 4)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "position": nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
                    "norm1": nn.GroupNorm(1, dim),
                    "attention": SuperTokenAttention(dim, 2, 4, rounds=2),
                    "norm2": nn.BatchNorm2d(dim),
                    "mlp": nn.Sequential(
                        nn.Conv2d(dim, 2 * dim, 1), nn.GELU(), nn.Conv2d(2 * dim, dim, 1)
                    ),
                }
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = x + block["position"](x)
            x = x + block["attention"](block["norm1"](x))
            x = x + block["mlp"](block["norm2"](x))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def build() -> nn.Module:
    """Two blocks of four by four windows."""
    with torch.no_grad():
        return SuperTokenVit()
