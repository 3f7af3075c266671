"""Models for the tests of the command: one that compiles in no time, and many that must not.

Every function here is a factory: the command names it as ``models.cli_models:NAME``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

WIDTH, TOKENS, CLASSES = 8, 9, 5
PLAIN_WIDTH = 16


class MergingVit(nn.Module):
    """x (B, 3, 12, 12) → logits (B, 5); 9 patches, of which 3 pairs are merged after attention."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        tokens = tokens + (q @ k.transpose(1, 2) * WIDTH**-0.5).softmax(dim=-1) @ v
        even, odd = tokens[:, ::2], tokens[:, 1::2]
        best, partner = (even @ odd.transpose(1, 2)).max(dim=-1)
        order = best.argsort(dim=-1, descending=True)[..., None]
        kept, merged = order[:, 3:], order[:, :3]
        target = partner[..., None].gather(1, merged)
        source = even.gather(1, merged.expand(-1, -1, WIDTH))
        odd = odd.scatter_reduce(1, target.expand(-1, -1, WIDTH), source, reduce="mean")
        rest = even.gather(1, kept.expand(-1, -1, WIDTH))
        result: Tensor = self.head(torch.cat([rest, odd], dim=1).mean(dim=1))
        return result


class UnmergedVit(MergingVit):
    """The same without merging."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        tokens = tokens + (q @ k.transpose(1, 2) * WIDTH**-0.5).softmax(dim=-1) @ v
        result: Tensor = self.head(tokens.mean(dim=1))
        return result


class PlainBlock(nn.Module):
    """A block without any reduction: attention, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(PLAIN_WIDTH), nn.LayerNorm(PLAIN_WIDTH)
        self.qkv = nn.Linear(PLAIN_WIDTH, 3 * PLAIN_WIDTH)
        self.proj = nn.Linear(PLAIN_WIDTH, PLAIN_WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(PLAIN_WIDTH, 2 * PLAIN_WIDTH),
            nn.GELU(),
            nn.Linear(2 * PLAIN_WIDTH, PLAIN_WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, N, PLAIN_WIDTH)."""
        batch, tokens, width = x.shape
        heads = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, 2, width // 2)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class AnswersOtherwiseWhenTraced(PlainBlock):
    """A block that a trace does not tell about."""

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns (B, N, C)."""
        by = float(torch.compiler.is_exporting())
        return super().forward(x) + by * torch.linspace(0.0, 0.1, x.shape[-1])


class PlainVit(nn.Module):
    """x (B, 3, 24, 24) → logits (B, 5) and tokens (B, N, C): 36 patches in three plain blocks.

    Args:
        classes: Whether there is a class token, which the logits are of then.
        batch: The only batch that it works for; None for any.
    """

    def __init__(self, classes: bool = True, batch: int | None = None) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, PLAIN_WIDTH, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, int(classes), PLAIN_WIDTH))
        self.positions = nn.Parameter(torch.zeros(1, 36 + classes, PLAIN_WIDTH))
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(3))
        self.head = nn.Linear(PLAIN_WIDTH, CLASSES, bias=False)
        self.batch = batch
        with torch.no_grad():  # far enough from zero that images are told apart
            for parameter in self.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns a dict."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        if self.batch is not None:
            tokens = tokens.reshape(self.batch, 36, PLAIN_WIDTH)  # fixed here
        tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = tokens + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return {"logits": self.head(tokens[:, 0]), "tokens": tokens}


class Linear(nn.Module):
    """x (B, 4) → (B, 5): the weights that the models below put something of their own around."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        result: Tensor = self.layer(x)
        return result


class Draws(Linear):
    """Draws random numbers in eval."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        noise = torch.rand_like(x)  # drawn here
        return super().forward(x + noise)


class KeepsSome(Linear):
    """Keeps the rows that pass a threshold: their number depends on the values."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (K, 5), K as many as are positive."""
        return super().forward(x[x.sum(dim=-1) > 0])  # masked here


class CountsNonzero(Linear):
    """Keeps the tokens that nonzero finds."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (K, 5)."""
        rows = torch.nonzero(x[:, 0] > 0)[:, 0]  # counted here
        return super().forward(x.index_select(0, rows))


class Loops(Linear):
    """Repeats a layer as often as the input says."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        for _ in range(int(x.abs().sum().item()) % 3 + 1):  # looped here
            x = x * 0.5
        return super().forward(x)


class Branches(Linear):
    """Takes one of two ways by the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        if x.sum() > 0:  # branched here
            return super().forward(x)
        return super().forward(-x)


class SortsNumbers(Linear):
    """Sorts whole numbers, which TensorRT does not."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        numbers = (x * 100).long().sort(-1).values  # sorted here
        return super().forward(numbers.float())


class Bessel(Linear):
    """Uses an operator that has no ONNX form."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        bent = torch.special.bessel_j0(x)  # bent here
        return super().forward(bent)


class Determinant(nn.Module):
    """x (B, 3, 3) → (B,): an operator that ONNX has and OpenVINO has not."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B,)."""
        result: Tensor = torch.linalg.det(x)  # taken here
        return result


class NotANumber(Linear):
    """Answers NaN where the input is negative."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        return super().forward(x.log())


class LeavesTorch(Linear):
    """Computes a part in numpy, which no trace can follow."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        halved = torch.from_numpy(x.numpy() / 2)  # left here
        return super().forward(halved)


class Mismatched(Linear):
    """Adds tensors whose shapes agree for no input but one of a single row."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        return super().forward(x) + torch.ones(3, 1)[: len(x)] @ torch.ones(1, 4)  # mismatched here


class FailsInTrace(Linear):
    """Fits its tensors together in eager, and not while it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        width = 3 if torch.compiler.is_compiling() else 4
        return super().forward(x) + x @ torch.ones(width, CLASSES)  # failed here


class Waits(Linear):
    """Writes the file of CLI_WAITS at the moment of CLI_MOMENT, eager or traced, and waits."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        now = "traced" if torch.compiler.is_compiling() else "eager"
        if os.environ.get("CLI_MOMENT") == now:
            Path(os.environ["CLI_WAITS"]).write_text(now, encoding="utf-8")
            time.sleep(120)
        return super().forward(x)


class Heavy(nn.Module):
    """x (B, 1024) → (B, 512), with weights of 2.1 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1024, 512)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 512)."""
        result: Tensor = self.layer(x)
        return result


class TwoInputs(nn.Module):
    """pixels (B, 4) and mask (B, 4) → scores (B, 5) and their sum (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)

    def forward(self, pixels: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Returns a dict."""
        scores = self.layer(pixels * mask)
        return {"scores": scores, "total": scores.sum(dim=-1)}


def merging_vit() -> nn.Module:
    torch.manual_seed(0)
    return MergingVit().eval()


def unmerged_vit() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return UnmergedVit().eval(), torch.zeros(1, 3, 12, 12)


def wide_vit() -> nn.Module:
    return MergingVit(classes=7)


def with_inputs() -> tuple[nn.Module, Tensor]:
    return merging_vit(), torch.zeros(1, 3, 12, 12)


def two_inputs() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    return TwoInputs(), {"pixels": torch.zeros(2, 4), "mask": torch.ones(2, 4)}


def plain_vit() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return PlainVit().eval(), torch.zeros(1, 3, 24, 24)


def plain_without_class_token() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return PlainVit(classes=False).eval(), torch.zeros(1, 3, 24, 24)


def plain_of_one_batch() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return PlainVit(batch=2).eval(), torch.zeros(2, 3, 24, 24)


def plain_of_two_faces() -> tuple[nn.Module, Tensor]:
    """Its blocks answer otherwise while they are traced, which no surgery can keep."""
    model, x = plain_vit()
    assert isinstance(model, PlainVit)
    model.blocks = nn.ModuleList(AnswersOtherwiseWhenTraced() for _ in range(3))
    return model.eval(), x
