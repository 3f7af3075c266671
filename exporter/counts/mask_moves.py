"""What is left of distinct positions and masks that are moved, joined or cut into equal parts.

Rules as in ``mask_facts``: a result of which nothing is certain is None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from tokexport.exporter.counts.index_sets import (
    Constant,
    Fact,
    Found,
    Known,
    Mask,
    Order,
    Positions,
    known_mask,
)
from tokexport.exporter.counts.mask_shapes import axis_of, split


def flip(known: Known, input: Tensor, *dims: Any) -> Found:
    """The same from the last to the first; the rows are others."""
    axes = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    turned = {axis_of(input, axis) for axis in axes}
    return _moved(known(input), input, turned, "flip", lambda ranks: ranks[::-1])


def roll(known: Known, input: Tensor, shifts: Any, dims: Any = ()) -> Found:
    """The same from another place on; the rows are others."""
    steps = [shifts] if isinstance(shifts, int) else [*shifts]
    axes = [dims] if isinstance(dims, int) else [*dims]
    if (
        not axes
        or len(steps) != len(axes)
        or len({axis_of(input, each) for each in axes}) < len(axes)
    ):
        return None
    by = {axis_of(input, axis): step for axis, step in zip(axes, steps, strict=True)}
    fact = known(input)
    step = by.get(fact.dim, 0) if isinstance(fact, Positions | Mask) else 0
    at = step % max(input.shape[fact.dim], 1) if isinstance(fact, Positions | Mask) else 0
    return _moved(
        fact,
        input,
        set(by),
        ("roll", *sorted(by.items())),
        lambda ranks: (*ranks[len(ranks) - at :], *ranks[: len(ranks) - at]),
    )


def _moved(
    fact: Fact | None,
    input: Tensor,
    axes: set[int],
    key: object,
    along: Callable[[tuple[Any, ...]], tuple[Any, ...]],
) -> Found:
    """Returns what is known once what stands along some axes stands in another order.

    Args:
        fact: What was known.
        input: The tensor.
        axes: The axes.
        key: How they are moved.
        along: Moves what stands along the axis of the fact.
    """
    if not isinstance(fact, Positions | Mask):
        return fact if isinstance(fact, Constant) else None
    rows = axes - {fact.dim} - (fact.repeats if isinstance(fact, Mask) else frozenset())
    if rows:
        fact = replace(fact, order=fact.order.part((key, input.dim(), *sorted(rows))))
    if fact.dim not in axes:
        return fact
    if isinstance(fact, Positions):
        return fact.picked(along(fact.ranks))
    if fact.values is not None:
        return replace(known_mask(fact.dim, along(tuple(fact.values))), repeats=fact.repeats)
    return counted(fact.dim, fact.order.size, fact.count, fact.repeats)


def counted(dim: int, size: int, count: int, repeats: frozenset[int] = frozenset()) -> Mask:
    """Returns a mask of which nothing but the count is known."""
    return Mask(dim, Order(size), frozenset(range(count)), repeats)


def stack(known: Known, tensors: Sequence[Tensor], dim: int = 0) -> Found:
    """Masks of one count each, as rows of one."""
    facts = [known(each) for each in tensors]
    at = dim % (tensors[0].dim() + 1)
    first = facts[0]
    if not isinstance(first, Mask) or not _of_one_count(facts):
        return None
    return counted(first.dim + (at <= first.dim), first.order.size, first.count)


def rows_of(known: Known, tensors: Sequence[Tensor], dim: int) -> Found:
    """Masks of one count each, joined along another axis than theirs."""
    facts = [known(each) for each in tensors]
    first = facts[0]
    if not isinstance(first, Mask) or first.dim == dim or not _of_one_count(facts):
        return None
    return counted(first.dim, first.order.size, first.count)


def _of_one_count(facts: Sequence[Fact | None]) -> bool:
    return all(isinstance(each, Mask) for each in facts) and (
        len({(m.dim, m.order.size, m.count) for m in facts if isinstance(m, Mask)}) == 1
    )


def chunk(known: Known, input: Tensor, chunks: int, dim: int = 0) -> Found:
    """Parts along the axis, of one size but for the last."""
    return split(known, input, -(-input.shape[axis_of(input, dim)] // chunks), dim)
