"""Gives rules for distinct positions and masks whose axes are added, removed, merged or cut.

Rules as in ``mask_facts``: a result of which nothing is certain is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from tokexport.exporter.counts.index_sets import (
    Chosen,
    Constant,
    Fact,
    Found,
    Known,
    Mask,
    Positions,
)


def axis_of(tensor: Tensor, dim: int) -> int:
    """Returns an axis counted from the front."""
    return dim % max(tensor.dim(), 1)


def slices_of(keys: Sequence[Any], tensor: Tensor) -> list[slice | int] | None:
    """Returns a slice or a number for every axis; None where something else is there."""
    if not all(isinstance(each, slice | int) or each is Ellipsis for each in keys):
        return None
    if any(isinstance(each, bool) for each in keys):
        return None
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        wide = [slice(None)] * (tensor.dim() - len(keys) + 1)
        keys = [*keys[:at], *wide, *keys[at + 1 :]]
    numbers = [
        end
        for each in keys
        if isinstance(each, slice)
        for end in (each.start, each.stop, each.step)
    ]
    if len(keys) > tensor.dim() or not all(n is None or isinstance(n, int) for n in numbers):
        return None
    return [*keys, *[slice(None)] * (tensor.dim() - len(keys))]


def getitem(known: Known, input: Tensor, key: Any) -> Found:
    """Parts along the axis, and single rows."""
    fact = known(input)
    keys = key if isinstance(key, tuple) else (key,)
    if isinstance(fact, Constant):
        plain = all(each is None or isinstance(each, slice | int) or each is ... for each in keys)
        return fact if plain else None
    if not isinstance(fact, Positions | Mask):
        return None
    if any(each is None for each in keys):
        return _with_new_axes(fact, input, keys)
    cut = slices_of(keys, input)
    if cut is None:
        return None
    for axis, part in enumerate(cut):
        if axis != fact.dim:
            fact = _of_rows(fact, input, axis, part)
    part = cut[fact.dim]
    if isinstance(part, int):
        return None
    found = _cut(fact, input.shape[fact.dim], part)
    gone = [axis for axis, each in enumerate(cut) if isinstance(each, int)]
    return None if found is None else _without_axes(found, gone)


def _of_rows(
    fact: Positions | Mask, input: Tensor, axis: int, part: slice | int
) -> Positions | Mask:
    """Returns what is known of some rows, which each have an order of their own."""
    size = input.shape[axis]
    rows = range(size)[part] if isinstance(part, slice) else range(size)[part : part + 1 or None]
    if rows == range(size) or (isinstance(fact, Mask) and axis in fact.repeats):
        return fact
    return replace(fact, order=fact.order.part((input.dim(), axis, rows)))


def _with_new_axes(fact: Positions | Mask, input: Tensor, keys: Sequence[Any]) -> Found:
    """Rules ``x[:, None]`` and the like, whose other parts take all."""
    cut = slices_of([each for each in keys if each is not None], input)
    if cut is None or any(part != slice(None) for part in cut):
        return None
    at, wide = 0, input.dim() - sum(each is not None and each is not ... for each in keys)
    for each in keys:
        if each is None:
            fact = _with_axis(fact, at)
        at += wide if each is ... else 1
    return fact


def _cut(fact: Positions | Mask, size: int, part: slice) -> Positions | Mask | None:
    if part == slice(None):
        return fact
    if isinstance(fact, Positions):
        return fact.picked(fact.ranks[part])
    places = range(size)[part]
    if places.step != 1:
        return None
    return fact.cut(places.start, size - places.stop) if len(places) else None


def _without_axes(fact: Positions | Mask, gone: Iterable[int]) -> Positions | Mask:
    """Returns what is known once some axes are gone."""
    gone = set(gone)

    def place(axis: int) -> int:
        return axis - sum(one < axis for one in gone)

    if isinstance(fact, Positions):
        return replace(fact, dim=place(fact.dim))
    repeats = frozenset(place(axis) for axis in fact.repeats - gone)
    return replace(fact, dim=place(fact.dim), repeats=repeats)


def _with_axis(fact: Positions | Mask, at: int) -> Positions | Mask:
    """Returns what is known once there is one more axis of size 1."""
    dim = fact.dim + (at <= fact.dim)
    if isinstance(fact, Positions):
        return replace(fact, dim=dim)
    repeats = frozenset({axis + (at <= axis) for axis in fact.repeats} | {at})
    return replace(fact, dim=dim, repeats=repeats)


def unsqueeze(known: Known, input: Tensor, dim: int) -> Found:
    """The same with one more axis."""
    fact = known(input)
    at = dim % (input.dim() + 1)
    if isinstance(fact, Positions | Mask):
        return _with_axis(fact, at)
    return fact if isinstance(fact, Constant) else None


def squeeze(known: Known, input: Tensor, dim: int) -> Found:
    """The same without an axis of size 1."""
    fact, at = known(input), axis_of(input, dim)
    if not isinstance(fact, Positions | Mask) or input.shape[at] != 1 or at == fact.dim:
        return fact if isinstance(fact, Constant) else None
    return _without_axes(fact, [at])


def expand(known: Known, input: Tensor, *sizes: Any) -> Found:
    """The same for every index of an axis of size 1."""
    fact = known(input)
    if isinstance(fact, Constant):
        return fact
    wide = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    new = len(wide) - input.dim()
    if not isinstance(fact, Positions | Mask) or not all(isinstance(each, int) for each in wide):
        return None
    for _ in range(new):
        fact = _with_axis(fact, 0)
    own = [*[1] * new, *input.shape]
    spread = {axis for axis, (a, b) in enumerate(zip(own, wide, strict=True)) if b not in (a, -1)}
    if fact.dim in spread:
        return None
    if isinstance(fact, Mask):
        return replace(fact, repeats=fact.repeats | spread)
    rows = ("spread", len(wide), frozenset(spread))
    return replace(fact, order=fact.order.part(rows)) if spread else fact


def expand_as(known: Known, input: Tensor, other: Tensor) -> Found:
    """The same for every index of an axis of size 1."""
    return expand(known, input, tuple(other.shape))


def view(known: Known, input: Tensor, *sizes: Any) -> Found:
    """The same where axes of size 1 come and go, and where a mask's axis takes others in."""
    fact = known(input)
    if isinstance(fact, Constant):
        return fact if not any(isinstance(each, torch.dtype) for each in sizes) else None
    wide = list(sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes)
    if not all(isinstance(each, int) for each in wide):
        return None
    if -1 in wide:
        rest = -prod(wide)
        wide[wide.index(-1)] = input.numel() // rest if rest else 0
    if isinstance(fact, Chosen):
        return fact.positions if tuple(wide) == fact.shape else None
    if not isinstance(fact, Positions | Mask) or input.shape[fact.dim] == 1:
        return None
    gone = [axis for axis, size in enumerate(input.shape) if size == 1]
    own = [size for size in input.shape if size != 1]
    fact = _without_axes(fact, gone)
    left = [size for size in wide if size != 1]
    if own != left:
        merged = _merged(fact, own, left) if isinstance(fact, Mask) else None
        if merged is None:
            return None
        fact = merged
    for axis, size in enumerate(wide):
        if size == 1:
            fact = _with_axis(fact, axis)
    return fact


def _merged(fact: Mask, before: list[int], after: list[int]) -> Mask | None:
    """Returns the mask of a view in which axes are merged; None where its axis is cut."""
    at, dim, repeats = 0, 0, set()
    order, ranks = fact.order, fact.ranks
    for place, size in enumerate(after):
        end = at + 1
        while end < len(before) and prod(before[at:end]) < size:
            end += 1
        axes = range(at, end)
        if prod(before[at:end]) != size:
            return None
        if fact.dim in axes:
            dim = place
            outer, inner = prod(before[at : fact.dim]), prod(before[fact.dim + 1 : end])
            if not {*range(fact.dim + 1, end)} <= fact.repeats:
                return None
            if len(axes) > 1:
                key = (tuple(before), at, end, frozenset(fact.repeats & {*axes}))
                ranks = frozenset(order.merged_ranks(fact.ranks, outer, inner))
                order = order.merged(outer, inner, key)
        elif {*axes} <= fact.repeats:
            repeats.add(place)
        elif len(axes) > 1:  # rows in another arrangement
            order = order.part(
                ("merged", tuple(before), at, end, frozenset(fact.repeats & {*axes}))
            )
        at = end
    return Mask(dim, order, ranks, frozenset(repeats)) if at == len(before) else None


def flatten(known: Known, input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Found:
    """The same with some axes merged."""
    start, end = axis_of(input, start_dim), axis_of(input, end_dim)
    shape = list(input.shape)
    return view(known, input, [*shape[:start], prod(shape[start : end + 1]), *shape[end + 1 :]])


def unflatten(known: Known, input: Tensor, dim: int, sizes: Any) -> Found:
    """The same with one axis as several."""
    at, shape = axis_of(input, dim), list(input.shape)
    return view(known, input, [*shape[:at], *sizes, *shape[at + 1 :]])


def repeat(known: Known, input: Tensor, *times: Any) -> Found:
    """The same for every index of an axis of size 1."""
    wide = list(times[0] if len(times) == 1 and not isinstance(times[0], int) else times)
    own = [*[1] * (len(wide) - input.dim()), *input.shape]
    if any(size != 1 and number != 1 for size, number in zip(own, wide, strict=True)):
        return None
    return expand(known, input, [a * b for a, b in zip(own, wide, strict=True)])


def repeat_interleave(known: Known, input: Tensor, repeats: Any, dim: Any = None) -> Found:
    """A mask whose every truth value stands there several times."""
    fact = known(input)
    if not isinstance(repeats, int) or repeats < 1 or not isinstance(fact, Mask):
        return None
    if dim is None and input.dim() > 1:
        return None
    at = 0 if dim is None else axis_of(input, dim)
    if at != fact.dim:
        return fact
    order = fact.order.merged(1, repeats, ("interleaved", repeats))
    return replace(
        fact, order=order, ranks=frozenset(fact.order.merged_ranks(fact.ranks, 1, repeats))
    )


def narrow(known: Known, input: Tensor, dim: int, start: Any, length: Any) -> Found:
    """A part along the axis."""
    if not isinstance(start, int) or start < 0:
        return None
    keys = [slice(None)] * axis_of(input, dim) + [slice(start, start + length)]
    return getitem(known, input, tuple(keys))


def unbind(known: Known, input: Tensor, dim: int = 0) -> Found:
    """Single rows."""
    fact, at = known(input), axis_of(input, dim)
    if isinstance(fact, Constant):
        return dict.fromkeys(range(input.shape[at]), fact)
    if not isinstance(fact, Positions | Mask) or at == fact.dim:
        return None
    return {
        row: _without_axes(_of_rows(fact, input, at, row), [at]) for row in range(input.shape[at])
    }


def split(known: Known, input: Tensor, split_size: Any, dim: int = 0) -> Found:
    """Parts along the axis."""
    at, found, start = axis_of(input, dim), dict[int, Fact](), 0
    size = input.shape[at]
    if isinstance(split_size, int):
        sizes = [split_size] * -(-size // split_size)
    elif all(isinstance(each, int) for each in split_size):
        sizes = list(split_size)
    else:
        return None
    for place, length in enumerate(sizes):
        part = narrow(known, input, at, start, min(length, size - start))
        if isinstance(part, Positions | Mask | Constant):
            found[place] = part
        start += length
    return found
