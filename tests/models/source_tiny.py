"""A model small enough to be saved in every form, and the factories that make it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NOT_CALLABLE = 3


class Tiny(nn.Module):
    """x (B, 4) → (B, classes); a buffer and a parameter shared under two names."""

    table: Tensor

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.head = nn.Linear(4, classes)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, classes)."""
        result: Tensor = self.head(self.tied(self.first(x)) + self.table)
        return result


module = Tiny()


def build() -> Tiny:
    return Tiny()


def with_tensor() -> tuple[nn.Module, Tensor]:
    return Tiny(), torch.ones(2, 4)


def with_tuple() -> tuple[nn.Module, tuple[Tensor, int]]:
    return Tiny(), (torch.ones(2, 4), 3)


def with_list() -> tuple[nn.Module, list[Tensor]]:
    return Tiny(), [torch.ones(2, 4)]


def with_names() -> tuple[nn.Module, dict[str, Tensor]]:
    return Tiny(), {"x": torch.ones(2, 4)}


def without_tensor() -> tuple[nn.Module, str]:
    return Tiny(), "x"


def returns_class() -> type[nn.Module]:
    return Tiny


def returns_pair() -> tuple[int, str]:
    return 3, "x"


def needs_size(size: int, name: str = "x") -> nn.Module:
    return Tiny(size)


def fails() -> nn.Module:
    raise ValueError("no such width: 7")


def leaves() -> nn.Module:
    raise SystemExit(4)


def fails_in_torch() -> nn.Module:
    return nn.Linear(-1, 2)


def made_in_function() -> nn.Module:
    """A model whose class cannot be found by its name, as after patching it."""

    class Patched(Tiny):
        pass

    model = Tiny()
    model.__class__ = Patched
    return model


class Builders:
    """A factory kept in a class."""

    @staticmethod
    def tiny() -> nn.Module:
        """Makes the model."""
        return Tiny()
