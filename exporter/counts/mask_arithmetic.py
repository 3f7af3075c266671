"""Gives rules for arithmetic, comparisons and counts of distinct positions and masks.

Rules as in ``mask_facts``: a result of which nothing is certain is None.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from tokexport.exporter.counts.index_sets import (
    Constant,
    Found,
    Known,
    Mask,
    OneHot,
    Positions,
    Rule,
    joined,
)
from tokexport.exporter.counts.mask_shapes import axis_of

COMPARISONS: Final = (
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
)


def two(function: Callable[[Any, Any], Any]) -> Rule:
    """Returns the rule of a function of two numbers."""

    def rule(known: Known, input: Any, other: Any, **options: Any) -> Found:
        if options:
            return None
        facts = [known(each) if isinstance(each, Tensor) else each for each in (input, other)]
        if any(fact is None for fact in facts):
            return None
        return _of_two(function, (input, other), facts)

    return rule


def _of_two(function: Callable[[Any, Any], Any], given: Any, facts: Sequence[Any]) -> Found:
    plain = [f.value if isinstance(f, Constant) else f for f in facts]
    numbers = [isinstance(each, bool | int | float) for each in plain]
    if all(numbers):
        return Constant(function(*plain))
    if not any(numbers):
        one, other = facts
        if function is operator.eq and all(isinstance(each, Positions) for each in facts):
            return _one_hot(given, facts)
        if not isinstance(one, Mask) or not isinstance(other, Mask):
            return None
        return joined(one, other, function) if given[0].shape == given[1].shape else None
    at = numbers.index(False)
    fact, number = plain[at], plain[1 - at]
    wide = given[1 - at].shape if isinstance(given[1 - at], Tensor) else ()
    if torch.broadcast_shapes(wide, given[at].shape) != given[at].shape:
        return None

    def applied(value: Any) -> Any:
        return function(value, number) if at == 0 else function(number, value)

    if isinstance(fact, Mask):
        low, high = applied(0), applied(1)
        if low not in (0, 1) or high not in (0, 1):
            return None
        if low == high:
            return Constant(low)
        return fact if high else fact.inverted()
    return _of_positions(function, fact, applied) if isinstance(fact, Positions) else None


def _one_hot(given: Sequence[Tensor], facts: Sequence[Positions]) -> Found:
    """One-hot rows from a comparison of positions with all positions, each along its own axis."""
    wide = max(each.dim() for each in given)
    dims = [fact.dim + wide - each.dim() for fact, each in zip(facts, given, strict=True)]
    shapes = [[*[1] * (wide - each.dim()), *each.shape] for each in given]
    for own, other in ((0, 1), (1, 0)):
        size = given[other].numel()
        if facts[other].values != [*range(size)] or dims[0] == dims[1]:
            continue
        if shapes[own][dims[other]] == 1 and shapes[other][dims[other]] == size:
            return OneHot(replace(facts[own], dim=dims[own]), size, dims[other])
    return None


def _of_positions(
    function: Callable[[Any, Any], Any], fact: Positions, applied: Callable[[Any], Any]
) -> Found:
    """Positions moved by a number, and the mask of a comparison of all ranks with one."""
    if function in (operator.add, operator.sub):
        moved = applied(fact.offset)
        step = applied(fact.offset + 1) - moved
        return replace(fact, offset=moved) if isinstance(moved, int) and step == 1 else None
    natural = fact.ranks == tuple(range(fact.order.size))
    if function not in COMPARISONS or not natural:
        return None
    true = frozenset(rank for rank in fact.ranks if applied(rank + fact.offset))
    return Mask(fact.dim, fact.order.inverse(), true)


def invert(known: Known, input: Tensor) -> Found:
    """The inverted mask, of truth values alone: ``~`` of whole numbers is no mask."""
    return logical_not(known, input) if input.dtype is torch.bool else None


def logical_not(known: Known, input: Tensor) -> Found:
    """The inverted mask."""
    fact = known(input)
    if isinstance(fact, Constant):
        return Constant(not fact.value)
    return fact.inverted() if isinstance(fact, Mask) else None


def isin(
    known: Known, elements: Tensor, test_elements: Tensor, *rest: Any, **options: Any
) -> Found:
    """The mask of one row's positions among all positions."""
    every, places = known(elements), known(test_elements)
    if options or rest or elements.dim() != 1 or not isinstance(places, Positions):
        return None
    if not isinstance(every, Positions) or every.values != [*range(len(elements))]:
        return None
    one_row = test_elements.numel() == len(places.ranks)
    return replace(places, dim=0).mask(len(elements)) if one_row else None


def where(known: Known, condition: Tensor, input: Any, other: Any) -> Found:
    """A mask whose two values are given."""
    mask = known(condition)
    if not isinstance(mask, Mask):
        return None
    values: list[bool | int | float] = []
    for each in (input, other):
        fact = known(each) if isinstance(each, Tensor) else each
        value = fact.value if isinstance(fact, Constant) else fact
        shape = each.shape if isinstance(each, Tensor) else ()
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            return None
        if torch.broadcast_shapes(shape, condition.shape) != condition.shape:
            return None
        values.append(value)
    if values[0] == values[1]:
        return Constant(values[0])
    return mask if values[0] else mask.inverted()


def total(known: Known, input: Tensor, dim: Any = None, *rest: Any, **options: Any) -> Found:
    """The count of a mask, and the mask that one-hot rows make together."""
    fact = known(input)
    if isinstance(fact, OneHot):
        if not isinstance(dim, int) or axis_of(input, dim) != fact.positions.dim:
            return None
        return None if any(rest) or options.get("keepdim") else fact.joined()
    if isinstance(dim, list | tuple):
        if len(dim) != 1:
            return None
        (dim,) = dim
    if isinstance(fact, Constant) and fact.value in (0, 1) and isinstance(dim, int | None):
        return Constant(fact.value * (input.numel() if dim is None else input.shape[dim]))
    if not isinstance(fact, Mask):
        return None
    if dim is None:
        return Constant(fact.count * input.numel() // max(input.shape[fact.dim], 1))
    return Constant(fact.count) if axis_of(input, dim) == fact.dim else None


def some(known: Known, input: Tensor, dim: Any = None, *rest: Any, **options: Any) -> Found:
    """Whether any of a mask is true; of one-hot rows, the mask that they make together."""
    fact = known(input)
    if isinstance(fact, OneHot):
        return total(known, input, dim, *rest, **options)
    counted = total(known, input, dim)
    return Constant(counted.value > 0) if isinstance(counted, Constant) else None


def every(known: Known, input: Tensor, dim: Any = None, *rest: Any, **options: Any) -> Found:
    """Whether all of a mask are true."""
    counted = total(known, input, dim)
    if not isinstance(counted, Constant) or not isinstance(dim, int | None):
        return None
    return Constant(counted.value == (input.numel() if dim is None else input.shape[dim]))
