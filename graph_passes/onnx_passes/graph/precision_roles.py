"""What every step of a graph computes for: which of them a reduced precision may touch.

A *decision* is a result of whole numbers or truths: an index, a rank, a comparison.

    selecting   reaches an output of the model through decisions only: scores, their norms, top-k
    counting    depends on the inputs through decisions only: token sizes and their logarithms,
                one-hot rows
    moving      reads numbers that count beside others: x · size, a one-hot product, log(size) + q·k

    wide          reads a constant that is marked, as the matrix of a Fourier transform is: sums
                  with it cancel, and would by no more than rounding leaves of them

Rounding a step that selects makes other tokens merge; rounding one that counts or moves makes a
merged token another mean. Both cost little time and much agreement, so they stay in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: What the name of a constant begins with that is read in float32 alone.
WIDE: Final = "c_wide_"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a graph, in the order of computation.

    Attributes:
        reads: The step and the result of it that each input is.
        decides: For each result, whether it is of whole numbers or truths.
        constant: Whether it holds a weight or another constant.
        given: Whether it is an input of the model.
        answers: Whether it is an output of the model.
        wide: Whether it reads a marked constant.
        linear: Whether it multiplies rows by a constant matrix.
        convolves: Whether it is a convolution.
    """

    reads: tuple[tuple[int, int], ...] = ()
    decides: tuple[bool, ...] = (False,)
    constant: bool = False
    given: bool = False
    answers: bool = False
    wide: bool = False
    linear: bool = False
    convolves: bool = False


@dataclass(frozen=True)
class Roles:
    """The steps of each role, by position.

    Attributes:
        selecting: They reach an output through decisions only.
        counting: They depend on the inputs through decisions only.
        moving: They read what counts beside what does not.
        heads: Linears that no other linear comes behind.
        first: Convolutions and linears that no other comes before, those that select apart: of an
            image, its patches.
        wide: They read a marked constant.
    """

    selecting: frozenset[int]
    counting: frozenset[int]
    moving: frozenset[int]
    heads: frozenset[int]
    first: frozenset[int]
    wide: frozenset[int]

    @property
    def exact(self) -> frozenset[int]:
        """The steps that stay in float32."""
        return self.selecting | self.counting | self.moving | self.wide


def roles_of(steps: Sequence[Step]) -> Roles:
    """Finds the role of every step."""
    products = frozenset(i for i, step in enumerate(steps) if step.linear or step.convolves)
    forward = _forward(steps)
    selecting = _selecting(steps, forward)
    counting = _counting(steps)
    return Roles(
        selecting=selecting,
        counting=counting,
        moving=frozenset(
            i
            for i, step in enumerate(steps)
            if i not in counting | products
            and not step.answers
            and any(read in counting and not steps[read].decides[at] for read, at in step.reads)
        ),
        heads=_heads(steps, forward) - selecting,
        first=_first(steps, products - selecting),
        wide=frozenset(i for i, step in enumerate(steps) if step.wide),
    )


def is_marked(name: str | None) -> bool:
    """Returns whether a constant of that name is marked: its readers stay in float32."""
    return (name or "").startswith(WIDE)


def _forward(steps: Sequence[Step]) -> list[list[int]]:
    """Returns for each step those that read a result of it which is no decision."""
    readers: list[list[int]] = [[] for _ in steps]
    for i, step in enumerate(steps):
        for read, at in step.reads:
            if not steps[read].decides[at]:
                readers[read].append(i)
    return readers


def _selecting(steps: Sequence[Step], forward: Sequence[Sequence[int]]) -> frozenset[int]:
    reaches = [False] * len(steps)
    for i in reversed(range(len(steps))):
        reaches[i] = steps[i].answers or any(reaches[reader] for reader in forward[i])
    return frozenset(
        i for i, step in enumerate(steps) if not reaches[i] and not step.constant and not step.given
    )


def _counting(steps: Sequence[Step]) -> frozenset[int]:
    found: set[int] = set()
    fixed: set[int] = set()
    for i, step in enumerate(steps):
        if step.given or step.answers:
            continue
        if step.constant or all(read in fixed for read, _ in step.reads):
            fixed.add(i)
            continue
        known = [
            read in found or read in fixed or (steps[read].decides[at] and not steps[read].given)
            for read, at in step.reads
        ]
        if all(known) and not step.linear and not step.convolves:
            found.add(i)
    return frozenset(found)


def _heads(steps: Sequence[Step], forward: Sequence[Sequence[int]]) -> frozenset[int]:
    followed = [False] * len(steps)
    for i in reversed(range(len(steps))):
        followed[i] = any(steps[reader].linear or followed[reader] for reader in forward[i])
    return frozenset(i for i, step in enumerate(steps) if step.linear and not followed[i])


def _first(steps: Sequence[Step], products: frozenset[int]) -> frozenset[int]:
    behind: set[int] = set()
    for i, step in enumerate(steps):
        if any(read in products or read in behind for read, _ in step.reads):
            behind.add(i)
    return products - behind
