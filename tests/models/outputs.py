"""Small modules whose inputs and outputs come in the forms that people's models have."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@dataclass
class Segments:
    """A result as a dataclass."""

    logits: Tensor
    features: list[Tensor]
    tokens_left: int


class Pair(NamedTuple):
    """A result as a named tuple."""

    logits: Tensor
    mask: Tensor


class Returns(nn.Module):
    """A linear layer that returns its result in the form asked for."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 5)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        """Takes x (B, 6)."""
        y = self.layer(x)
        return {
            "tensor": lambda: y,
            "tuple": lambda: (y, 4.25),
            "list": lambda: [y, (y * 2, None)],
            "dict": lambda: {"logits": y, "aux": {"flops": 12, "scaled": y * 3}},
            "dataclass": lambda: Segments(y, [y + 1, y + 2], 7),
            "named": lambda: Pair(y, y > 0),
            "same twice": lambda: (y, y),
            "input": lambda: (x, y),
            "constant": lambda: (y, torch.arange(3)),
            "called like the input": lambda: {"x": x * 2, "logits": y},
            "two called like it": lambda: {"x": x * 2, "x_out": y},
            "a weight": lambda: (y, self.layer.weight),
            "complex": lambda: torch.complex(y, y),
            "set": lambda: {y},
            "empty": lambda: (y, y[:, :0]),
            "collision": lambda: {"a": (y, y + 1), "a_0": y * 3},
            "infinity": lambda: (y, float("inf")),
        }[self.form]()


class Unsteady(nn.Module):
    """Answers by what rounding left: fp32 and float64 have nothing in common."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Takes x (B, 6)."""
        return torch.sin(self.layer(x) * 1e9)


class TwoInputs(nn.Module):
    """Reads a table by integer ids and adds it to an image's features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 6)
        self.layer = nn.Linear(6, 4)

    def forward(self, pixels: Tensor, *, ids: Tensor, scale: float = 1.0) -> Tensor:
        """Takes pixels (B, 6) and ids (B,)."""
        result: Tensor = self.layer(pixels * scale + self.table(ids))
        return result


class SeesTracing(nn.Module):
    """Answers otherwise while it is traced: what no comparison behind the trace could see."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Takes x (B, 6)."""
        y: Tensor = self.layer(x)
        return y * 1.5 if torch.compiler.is_compiling() else y


class KeepsState(nn.Module):
    """Counts its runs in objects that are no dict: an attribute holder and a deque."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)
        self.state = SimpleNamespace(size=None)
        self.schedule = deque([1, 2, 3])

    def forward(self, x: Tensor) -> Tensor:
        """Takes x (B, 6)."""
        y: Tensor = self.layer(x)
        self.schedule.extend([3] if len(self.schedule) == 1 else [])
        self.schedule.popleft()
        y = y if self.state.size is None else y + 0 * self.state.size
        self.state.size = y.mean()
        return y
