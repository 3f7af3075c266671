"""Numbers tokens, and remembers which patches of the picture each of them holds.

A token's number stands for a set of patches: two tokens that merge get the number of the union.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

#: The number of a value that belongs to no token: padding, a row that nothing was written to.
NOTHING: Final = -1


class TokenIds:
    """The tokens that were met in one run.

    Attributes:
        grid: Rows and columns of patches; None before a patch embedding was met.
        merged: Whether two tokens have met.
    """

    def __init__(self) -> None:
        self.grid: tuple[int, int] | None = None
        self.merged = False
        self._held: list[int] = []  # bit p is set where a token holds patch p
        self._by_set: dict[int, int] = {}

    def start(self, rows: int, columns: int) -> Tensor:
        """Begins anew with a token for each patch; returns their numbers, (rows · columns,)."""
        self.grid = rows, columns
        self.merged = False
        self._held = [1 << patch for patch in range(rows * columns)]
        self._by_set = {held: number for number, held in enumerate(self._held)}
        return torch.arange(rows * columns)

    def special(self, count: int) -> Tensor:
        """Returns new numbers of tokens that hold no patch, (count,)."""
        first = len(self._held)
        self._held += [0] * count
        return torch.arange(first, first + count)

    def union(self, numbers: Iterable[int]) -> int:
        """Returns the number of the token that several become; of one alone that of it."""
        several = {number for number in numbers if number != NOTHING}
        if len(several) < 2:
            return next(iter(several), NOTHING)
        held = 0
        for number in several:
            held |= self._held[number]
        if not held:
            return min(several)
        if held not in self._by_set:
            self._by_set[held] = len(self._held)
            self._held.append(held)
        self.merged = True
        return self._by_set[held]

    def patches(self, number: int) -> tuple[int, ...]:
        """Returns the patches that a token holds, in order."""
        held = self._held[number] if number != NOTHING else 0
        found = []
        while held:
            lowest = held & -held
            found.append(lowest.bit_length() - 1)
            held ^= lowest
        return tuple(found)

    def holders(self, row: Iterable[int]) -> tuple[int, ...]:
        """Returns for each patch the position of the token that holds it; -1 where none does.

        Of several tokens that hold a patch the one with the fewest patches counts.

        Args:
            row: The numbers of an image's tokens, in order.
        """
        rows, columns = self.grid or (0, 0)
        found = [NOTHING] * (rows * columns)
        fewest = [rows * columns + 1] * (rows * columns)
        for position, number in enumerate(row):
            patches = self.patches(number)
            for patch in patches:
                if len(patches) < fewest[patch]:
                    found[patch], fewest[patch] = position, len(patches)
        return tuple(found)
