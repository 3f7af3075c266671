"""Defines the base of reduction methods: options, and hooks at places of a block.

A method is a frozen dataclass. Its fields are its options, each made by ``option``; it overrides
the places it works at and returns new tokens from there. N is a plain number in there, to compute
with; a token's value may choose tokens, never how many.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.tokens import Tokens


@dataclass(frozen=True)
class Layer:
    """The block that a method works in.

    Attributes:
        index: Its position, from 0.
        depth: How many there are.
        trained: The method's own parameters in this block, or None.
    """

    index: int
    depth: int
    trained: nn.Module | None = None


class Block(Protocol):
    """The functions of a block that a method may use."""

    def attention(self, tokens: Tokens) -> Attention:
        """Computes queries, keys and values of the block's norm and projections."""


def option(default: Any, help: str) -> Any:
    """Declares an option of a method with its default and its meaning."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Method:
    """Reduces nothing: the block as it is, with log(size) in its attention where sizes are kept.

    Attributes:
        layers: The blocks it acts in, from 0; all without it.
    """

    #: What a recipe calls it.
    name: ClassVar[str] = "none"
    #: What it does, one line.
    summary: ClassVar[str] = "nothing"
    #: The paper, and the section or figure that defines it.
    source: ClassVar[str] = ""
    #: The option that says how much is reduced.
    strength: ClassVar[str] = "r"
    #: Whether log(size) is added to the attention's logits.
    proportional: ClassVar[bool] = True
    #: Whether it reads the attention of a class token.
    needs_class_token: ClassVar[bool] = False
    #: Whether it has parameters that only training gives.
    needs_training: ClassVar[bool] = False

    layers: tuple[int, ...] | None = option(None, "the blocks it acts in, from 0")

    def acts_in(self, layer: Layer) -> bool:
        """Returns whether the method does anything in a block."""
        return self.layers is None or layer.index in self.layers

    def adds_sizes(self) -> bool:
        """Returns whether log(size) is added to the attention's logits."""
        return self.proportional

    def before_attention(
        self, layer: Layer, tokens: Tokens, block: Block
    ) -> tuple[Tokens, Attention]:
        """Takes the block's input; returns it, reduced or not, and the attention to use."""
        return tokens, block.attention(tokens)

    def after_attention(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Takes the tokens behind the attention's residual sum."""
        return tokens

    def after_mlp(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Takes the block's output; the attention is that of this block."""
        return tokens

    def trained(self, layer: Layer, width: int) -> nn.Module | None:
        """Makes the method's own parameters of a block of C = width channels, where it has some."""
        return None


def check(good: bool, what: str, fix: str) -> None:
    """Refuses options that make no sense together.

    Raises:
        SurgeryError: They make no sense together.
    """
    if not good:
        raise SurgeryError(what, fix=fix)


def check_shares(name: str, shares: float | tuple[float, ...]) -> None:
    """Refuses a share, or one of several, that keeps nothing or more than all.

    Raises:
        SurgeryError: A share is not above 0 and at most 1.
    """
    for share in shares if isinstance(shares, tuple) else (shares,):
        check(0 < share <= 1, f"{name} is {share}.", "Give a share above 0, at most 1.")


def normalised(x: Tensor) -> Tensor:
    """Brings each token of (B, N, D) to length 1, so that inner products are cosines."""
    unit: Tensor = x / x.norm(dim=-1, keepdim=True)
    return unit


def head_mean(keys: Tensor) -> Tensor:
    """Averages (B, H, N, D) over heads and normalises each token: (B, N, D)."""
    return normalised(keys.mean(dim=1))


def inner_products(x: Tensor) -> Tensor:
    """Returns the inner product of each pair of tokens x (B, N, D): (B, N, N).

    It is symmetric to the bit, which a matrix product alone is not: two tokens that are each
    other's nearest then tie, and the lower index decides, in every runtime.
    """
    product = x @ x.transpose(-1, -2)
    return product.triu() + product.triu(1).transpose(-1, -2)
