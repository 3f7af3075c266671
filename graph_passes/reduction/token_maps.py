"""Maps the tokens of a layer as a method decided, for any value with a row a token.

===============  ================================================================================
``Selection``    some tokens stay, in the order given; the others are dropped
``Matching``     tokens of one set merge into tokens of another: bipartite soft matching
``Chain``        one after the other
===============  ================================================================================

B batch, N tokens before, M after. Each is called with a value (B, N, C) and gives (B, M, C);
``sources`` (B, M) says which old token a new one continues, ``places`` (B, N) where an old token is
found now, -1 where it was dropped. Everything is plain torch, so gradients flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tokexport.graph_passes.ops.ops import bipartite_match, gather_tokens, merge_tokens

#: Rows of a token axis: a slice, the same in all images, or positions (B, K).
Rows = slice | Tensor


class TokenMap(Protocol):
    """A map from N tokens to M."""

    def __call__(self, value: Tensor, mode: str = "sum") -> Tensor:
        """Maps (B, N, C) to (B, M, C); rows that meet are reduced by ``mode`` of ``ops.MODES``."""

    def sources(self) -> Tensor:
        """Returns the old token that each new one continues, (B, M) int64."""

    def places(self) -> Tensor:
        """Returns the new position of each old token, (B, N) int64, -1 for a dropped one."""


@dataclass(frozen=True)
class Selection:
    """Some tokens stay.

    Attributes:
        index: Their positions (B, M), in their new order.
        tokens: N.
    """

    index: Tensor
    tokens: int

    def __call__(self, value: Tensor, mode: str = "sum") -> Tensor:
        """Takes the rows; no rows meet."""
        return gather_tokens(value, self.index)

    def sources(self) -> Tensor:
        """Returns the positions themselves."""
        return self.index

    def places(self) -> Tensor:
        """Returns the new positions, -1 for dropped tokens."""
        nowhere = self.index.new_full((self.index.shape[0], self.tokens), -1)
        return nowhere.scatter(1, self.index, _counted(self.index))


@dataclass(frozen=True)
class Matching:
    """Tokens of a merge into tokens of b: kept and b stay.

    New order: the others, then the kept of a, then b; with ``b_first`` b before the kept.

    Attributes:
        tokens: N.
        batch: B.
        others: Rows in neither set.
        a: Rows that may go.
        b: Rows that take them in.
        kept: Positions within a, (B, Na - r).
        src: Positions within a, (B, r).
        dst: Positions within b, (B, r).
        b_first: Which of the two comes first.
    """

    tokens: int
    batch: int
    others: Rows
    a: Rows
    b: Rows
    kept: Tensor
    src: Tensor
    dst: Tensor
    b_first: bool = False

    def __call__(self, value: Tensor, mode: str = "sum") -> Tensor:
        """Merges the rows."""
        rest, merged = _rows(value, self.a), _rows(value, self.b)
        both = merge_tokens(rest, merged, self.kept, self.src, self.dst, mode)
        parts = [both]
        if self.b_first:
            kept = self.kept.shape[1]
            parts = [both[:, kept:], both[:, :kept]]
        return torch.cat([_rows(value, self.others), *parts], dim=1)

    def pruned(self, value: Tensor) -> Tensor:
        """Drops what would merge, with the same order: (B, N, C) to (B, M, C)."""
        return self(value, "none")

    @property
    def dst_rows(self) -> int:
        """How many rows take others in, Nb: the last ones, without ``b_first``."""
        if isinstance(self.b, slice):
            return len(range(self.tokens)[self.b])
        return int(self.b.shape[1])

    def sources(self) -> Tensor:
        """Returns the old positions: of a merged token that of its destination."""
        old = torch.arange(self.tokens, device=self.kept.device).expand(self.batch, -1)
        return self.pruned(old[..., None].float())[..., 0].long()

    def places(self) -> Tensor:
        """Returns the new positions; a merged token is where its destination is."""
        old = torch.arange(self.tokens, device=self.kept.device).expand(self.batch, -1)
        others, a, b = (_picked(old, rows) for rows in (self.others, self.a, self.b))
        kept_from, b_from = others.shape[1], others.shape[1] + self.kept.shape[1]
        if self.b_first:
            kept_from, b_from = others.shape[1] + b.shape[1], others.shape[1]
        seats = torch.cat([kept_from + _counted(self.kept), b_from + self.dst], dim=1)
        of_a = torch.zeros_like(a).scatter(1, torch.cat([self.kept, self.src], dim=1), seats)
        new = torch.cat([_counted(others), of_a, b_from + _counted(b)], dim=1)
        sets = (self.others, self.a, self.b)
        if all(isinstance(rows, slice) for rows in sets):
            everyone = range(self.tokens)
            rows = [n for one in sets if isinstance(one, slice) for n in everyone[one]]
            found_at = sorted(everyone, key=rows.__getitem__)  # the same in all images
            return new[:, torch.tensor(found_at, device=old.device)]
        return torch.zeros_like(old).scatter(1, torch.cat([others, a, b], dim=1), new)


@dataclass(frozen=True)
class Chain:
    """Two maps, one after the other."""

    first: TokenMap
    second: TokenMap

    def __call__(self, value: Tensor, mode: str = "sum") -> Tensor:
        """Applies both; a mean of means is not the mean of all."""
        return self.second(self.first(value, mode), mode)

    def sources(self) -> Tensor:
        """Goes back through both."""
        return self.first.sources().gather(1, self.second.sources())

    def places(self) -> Tensor:
        """Goes forward through both; only a selection drops tokens."""
        middle = self.first.places()
        if isinstance(self.first, Matching):
            return self.second.places().gather(1, middle)
        end = self.second.places().gather(1, middle.clamp_min(0))
        return torch.where(middle < 0, middle, end)


def even_and_odd(tokens: int, special: int) -> tuple[slice, slice, slice]:
    """Splits N tokens behind the special ones: (special, even positions, odd positions)."""
    even, odd = special + special % 2, special + 1 - special % 2
    return slice(0, special), slice(even, tokens, 2), slice(odd, tokens, 2)


def match_rows(
    scores: Tensor, r: int, order: str, value: Tensor, others: Rows, a: Rows, b: Rows
) -> Matching:
    """Matches the r best pairs of rows a and b, by scores (B, Na, Nb)."""
    kept, src, dst = bipartite_match(scores, r, order)
    return Matching(value.shape[1], value.shape[0], others, a, b, kept, src, dst)


def ranking(values: Tensor, descending: bool = True) -> Tensor:
    """Orders (B, N) from the largest on, or the smallest; of equal values the lower index is first.

    Equals are no rarity: two tokens that are each other's nearest have one and the same similarity.
    """
    return values.argsort(dim=-1, descending=descending, stable=True)


def behind_special(special: int, index: Tensor) -> Tensor:
    """Puts the positions 0 … special - 1 before positions (B, K)."""
    first = torch.arange(special, device=index.device).expand(index.shape[0], -1)
    return torch.cat([first, index], dim=1)


def _rows(value: Tensor, rows: Rows) -> Tensor:
    return value[:, rows] if isinstance(rows, slice) else gather_tokens(value, rows)


def _picked(positions: Tensor, rows: Rows) -> Tensor:
    return positions[:, rows] if isinstance(rows, slice) else positions.gather(1, rows)


def _counted(index: Tensor) -> Tensor:
    """Returns 0 … M - 1 in every row of (B, M)."""
    return torch.arange(index.shape[1], device=index.device).expand_as(index)
