"""Holds the tokens between two blocks, with their sizes, origins and memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokexport.graph_passes.ops.ops import gather_tokens
from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.token_maps import TokenMap


@dataclass(frozen=True)
class Trace:
    """Where the tokens of the first block are now.

    Attributes:
        origins: For each token now, the first block's token it continues, (B, N) int64; None where
            no token continues one.
        places: For each token of the first block, where it is now, (B, N0) int64, -1 where it was
            dropped.
        last: What the first block's tokens last were, (B, N0, C): read where one was dropped. None
            while none was.
    """

    origins: Tensor | None
    places: Tensor
    last: Tensor | None = None

    def moved(self, by: TokenMap, x: Tensor, drops: bool) -> Trace:
        """Follows one reduction of the tokens x (B, N, C)."""
        last = self.restored(x) if drops else self.last
        new = by.places().gather(1, self.places.clamp_min(0))
        places = torch.where(self.places < 0, self.places, new)
        origins = None if self.origins is None else self.origins.gather(1, by.sources())
        return Trace(origins, places, last)

    def restored(self, x: Tensor) -> Tensor:
        """Puts the tokens x (B, N, C) back where they were: (B, N0, C).

        A merged token stands at all places it was merged from; a dropped one is what it last was.
        """
        whole = gather_tokens(x, self.places.clamp_min(0))
        return (
            whole
            if self.last is None
            else torch.where(self.places[..., None] < 0, self.last, whole)
        )


@dataclass(frozen=True)
class Tokens:
    """Tokens of a batch.

    Attributes:
        x: (B, N, C).
        special: How many of them, at the front, are class, distillation or register tokens.
        began: How many tokens entered the first block.
        size: How many patches each stands for, (B, N, 1); None while each stands for one.
        trace: Where they come from; None where it is not needed.
        memory: What a method carries from block to block; its own business.
    """

    x: Tensor
    special: int
    began: int
    size: Tensor | None = None
    trace: Trace | None = None
    memory: Tensor | None = None

    @property
    def count(self) -> int:
        """N."""
        return int(self.x.shape[1])

    @property
    def sizes(self) -> Tensor:
        """The sizes, (B, N, 1), ones where none were merged yet."""
        return torch.ones_like(self.x[..., :1]) if self.size is None else self.size

    def with_x(self, x: Tensor) -> Tokens:
        """Returns the same tokens with other values (B, N, C)."""
        return replace(self, x=x)

    def with_size(self, size: Tensor | None) -> Tokens:
        """Returns the same tokens with other sizes (B, N, 1)."""
        return replace(self, size=size)

    def remember(self, memory: Tensor) -> Tokens:
        """Returns the same tokens with something for the next block."""
        return replace(self, memory=memory)

    def merged(self, by: TokenMap, x: Tensor, size: Tensor | None) -> Tokens:
        """Returns the tokens after a merge.

        Args:
            by: What was decided.
            x: The merged tokens, (B, M, C).
            size: Their sizes (B, M, 1), or None where the method keeps none.
        """
        trace = None if self.trace is None else self.trace.moved(by, self.x, drops=False)
        return replace(self, x=x, size=size, trace=trace)

    def merged_by_size(self, by: TokenMap) -> Tokens:
        """Merges by size-weighted means; sizes add up."""
        size = by(self.sizes)
        return self.merged(by, by(self.x * self.sizes) / size, size)

    def kept(self, by: TokenMap, x: Tensor | None = None) -> Tokens:
        """Returns the tokens that stay, and lets the others go.

        Args:
            by: Which stay; called with mode ``none``.
            x: Their values, where they are not those they had.
        """
        trace = None if self.trace is None else self.trace.moved(by, self.x, drops=True)
        size = None if self.size is None else by(self.size, "none")
        return replace(self, x=by(self.x, "none") if x is None else x, size=size, trace=trace)

    def mixed(self, x: Tensor, method: str) -> Tokens:
        """Returns tokens (B, M, C) that no single old token continues in.

        Raises:
            SurgeryError: The origins of the tokens are needed.
        """
        if self.trace is not None:
            raise SurgeryError(
                f"{method} mixes all tokens, so none of its own has a position any more.",
                fix="Take a method that selects or merges tokens, for rotary positions and for "
                "--restore.",
            )
        return replace(self, x=x, size=None)
