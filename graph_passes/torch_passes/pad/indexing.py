"""Pads ``x[…]`` and ``x[…] = values`` with masks and positions, alone or together.

Before → after::

    x[:, mask]              index_select(x, 1, index), the mask's positions
    x[mask, j], x[i, j]     the indexed axes as one: index_select(x', a, i · n + j)
    x[:, mask] = values     where(mask, the value at the row's rank in the mask, x)
    x[i, j] = values        index_put(x' and a row to lose, i · n + j, values), cut again

The position of a padding row is one after the last, which is cut off.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.fx import Node

from tokexport.graph_passes.stack_traces import source_line
from tokexport.graph_passes.torch_passes.graph.calls import argument, dtype_of, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.match.integer_bounds import is_never_negative
from tokexport.graph_passes.torch_passes.pad.padded_rows import Padded, ValidRows, refused
from tokexport.graph_passes.torch_passes.pad.row_places import from_the_front, length_of
from tokexport.graph_passes.torch_passes.pad.selections import (
    Constants,
    chosen,
    columns,
    flat_once,
)


def index(padded: Padded, node: Node, constants: Constants) -> None:
    """Pads ``x[…]``."""
    x: Node = padded.new(node.args[0])
    parts: list[Any] = padded.new(argument(node, "indices"))
    given = [a for a, part in enumerate(parts) if part is not None]
    edit = padded.edit
    masks = [a for a in given if _is_mask(parts[a])]
    if not masks and not padded.valid(x) and not any(padded.valid(parts[a]) for a in given):
        padded.set(node, edit.call(node.target, x, parts), {})
        return
    if masks and len(given) == 1:
        _by_mask(padded, node, x, given[0], parts[given[0]], constants)
        return
    first, places, rank = _positions(padded, node, x, parts, constants)
    valid = padded.valid(x)
    after = {a: one for a, one in valid.items() if a < first}
    after |= {a - rank + _width(places): one for a, one in valid.items() if a >= first + rank}
    if rank == 1:
        kept = {first + a: one for a, one in padded.valid(places[0]).items()}
        position = padded.positions(places[0])
        new = edit.call(aten.index.Tensor, x, [*[None] * first, position])
        padded.set(node, new, {**after, **kept})
        return
    flat, one_place, kept_row = _as_one(padded, node, x, first, places)
    new = edit.call(aten.index.Tensor, flat, [*[None] * first, one_place])
    padded.set(node, new, {**after, **({first: kept_row} if kept_row else {})})


def _is_mask(part: Node) -> bool:
    return dtype_of(part) in (torch.bool, torch.uint8)


def _width(places: list[Node]) -> int:
    return max(len(shape_of(place)) for place in places)


def _by_mask(
    padded: Padded, node: Node, x: Node, first: int, mask: Node, constants: Constants
) -> None:
    """``x[…, mask]``, of a mask of any rank."""
    rank = len(shape_of(mask))

    def place(position: int, axis: int) -> int | None:
        inner = axis - first if position == 0 else axis
        return inner if 0 <= inner < rank else None

    (x, mask), inner = padded.meet(node, (x, mask), place)
    if padded.valid(mask) != inner or any(a + first not in padded.valid(x) for a in inner):
        raise refused(node, "its mask and the indexed value are padded differently")
    shape = shape_of(mask)
    times = shape[0] if rank > 1 else 1
    rows, kept = chosen(padded, node, flat_once(padded, node, mask), constants, times)
    sizes = shape_of(x)
    flat = padded.edit.view(x, [*sizes[:first], prod(shape), *sizes[first + rank :]])
    new = padded.edit.call(aten.index_select.default, flat, first, rows)
    after = {
        a if a < first else a - rank + 1: one
        for a, one in padded.valid(x).items()
        if a < first or a >= first + rank
    }
    if kept:
        after[first] = kept
    padded.set(node, new, after)


def _positions(
    padded: Padded, node: Node, x: Node, parts: list[Any], constants: Constants
) -> tuple[int, list[Node], int]:
    """Returns the first axis that is indexed, the positions along each, and how many they are."""
    places: list[Node] = []
    axis = 0
    axes: list[int] = []
    for part in parts:
        if part is None:
            axis += 1
            continue
        if not _is_mask(part):
            found = [part]
        else:
            masks = padded.valid(part).items()
            if any(padded.valid(x).get(axis + a) is not one for a, one in masks):
                raise refused(node, "its mask and the indexed value are padded differently")
            found, kept = columns(padded, node, part, constants)
            for each in found:
                padded.note(each, {0: kept} if kept else {})
        places += found
        axes += range(axis, axis + len(found))
        axis += len(found)
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise refused(node, "it indexes axes that do not follow on one another")
    for at, (a, place) in enumerate(zip(axes, places, strict=True)):
        valid = padded.valid(x).get(a)
        if valid is not None and not valid.is_prefix:
            raise refused(node, "it reads positions among rows that are padded inside")
        if any(size == 0 for size in shape_of(place)):
            raise refused(node, "it takes no position")
        if valid is not None and (known := constants(place)) is not None:
            least = max(int(known.max()) + 1, -int(known.min()))
            there = padded.edit.call(aten.ge.Scalar, valid.count, least)
            padded.require(there, "rows", f"fewer than {least} rows are chosen", source_line(node))
        if (valid is not None or len(places) > 1) and not is_never_negative(place):
            places[at] = from_the_front(padded, place, length_of(padded, x, a))
            if valid is not None:
                last = shape_of(x)[a] - 1
                places[at] = padded.edit.call(aten.clamp.default, places[at], 0, last)
                padded.note(places[at], padded.valid(place))
    return axes[0], places, len(axes)


def _as_one(
    padded: Padded, node: Node, x: Node, first: int, places: list[Node]
) -> tuple[Node, Node, ValidRows | None]:
    """Returns a value whose indexed axes are one, the positions along it, and which are real."""
    edit, sizes = padded.edit, shape_of(x)
    wide = _width(places)
    places, found = padded.meet(
        node, places, lambda at, axis: axis + wide - len(shape_of(places[at]))
    )
    if found and wide > 1:
        raise refused(node, "it indexes with positions of several axes")
    own = sizes[first : first + len(places)]
    total: Any = None
    for at, place in enumerate(places):
        part = padded.positions(place)
        below = prod(own[at + 1 :])
        part = edit.call(aten.mul.Tensor, part, below) if below > 1 else part
        total = part if total is None else edit.call(aten.add.Tensor, total, part)
    flat = edit.view(x, [*sizes[:first], prod(own), *sizes[first + len(places) :]])
    return flat, total, found.get(0)


def put(padded: Padded, node: Node, constants: Constants) -> None:
    """Pads ``x[…] = values``."""
    x, values = padded.new(node.args[0]), padded.new(argument(node, "values"))
    parts: list[Any] = padded.new(argument(node, "indices"))
    given = [a for a, part in enumerate(parts) if part is not None]
    if len(given) == 1 and _is_mask(parts[given[0]]) and not argument(node, "accumulate"):
        _by_ranks(padded, node, x, given[0], parts[given[0]], values, constants)
        return
    first, places, rank = _positions(padded, node, x, parts, constants)
    valid = padded.valid(x)
    flat, place, kept = _as_one(padded, node, x, first, places)
    edit, sizes = padded.edit, shape_of(flat)
    axis = len(shape_of(values)) - (len(sizes) - first)
    rows = padded.valid(values)
    others = {a + (len(sizes) - len(shape_of(values))): one for a, one in rows.items() if a != axis}
    if others != {
        (a if a < first else a - rank + 1): one
        for a, one in valid.items()
        if a < first or a >= first + rank
    }:
        raise refused(node, "the written values are padded differently from their places")
    if axis in rows and kept is not None:
        kept = padded.agree(node, kept, rows[axis])
        values = padded.narrowed(values, axis, kept)
        if shape_of(place)[0] != shape_of(kept.mask)[0]:
            place = edit.call(aten.slice.Tensor, place, 0, 0, shape_of(kept.mask)[0])
    elif axis in rows:
        raise refused(node, "the rows that it writes and their places were chosen differently")
    if kept is not None:
        place = lost(padded, place, kept, 0, sizes[first])
        flat = with_a_row_to_lose(padded, flat, first)
    new = edit.call(
        aten.index_put.default,
        flat,
        [*[None] * first, place],
        values,
        bool(argument(node, "accumulate")),
    )
    if kept is not None:
        new = edit.call(aten.slice.Tensor, new, first, 0, sizes[first])
    padded.set(node, edit.view(new, shape_of(x)), valid)


def lost(padded: Padded, place: Node, valid: ValidRows, axis: int, size: int) -> Node:
    """Returns positions whose padding rows, and those beyond, are the one behind the last."""
    edit = padded.edit
    padded.note(place, {axis: valid})
    place = padded.filled(place, axis, size)
    return edit.call(aten.clamp_max.default, place, size)


def with_a_row_to_lose(padded: Padded, x: Node, axis: int) -> Node:
    """Returns a value with one more row, 0."""
    shape = [*shape_of(x)]
    shape[axis] = 1
    row = padded.constant(shape, False if dtype_of(x) == torch.bool else 0, dtype_of(x))
    return padded.edit.call(aten.cat.default, [x, row], axis)


def _by_ranks(
    padded: Padded,
    node: Node,
    x: Node,
    first: int,
    mask: Node,
    values: Node,
    constants: Constants,
) -> None:
    """``x[…, mask] = values``: where(mask, the value at the row's rank in mask, x)."""
    edit, rank = padded.edit, len(shape_of(mask))

    def place(position: int, axis: int) -> int | None:
        inner = axis - first if position == 0 else axis
        return inner if 0 <= inner < rank else None

    (x, mask), inner = padded.meet(node, (x, mask), place)
    valid = padded.valid(x)
    if padded.valid(mask) != inner or any(a + first not in valid for a in inner):
        raise refused(node, "its mask and the value that it changes are padded differently")
    sizes = shape_of(x)
    flat_mask = padded.first(flat_once(padded, node, mask))
    count = prod(shape_of(mask))
    behind = sizes[first + rank :]
    flat = edit.view(x, [*sizes[:first], count, *behind])
    wide = edit.view(flat_mask, [count, *[1] * len(behind)])
    along = len(shape_of(values)) - 1 - len(behind)
    rows = padded.valid(values)
    if along >= 0 and shape_of(values)[along] != 1 or rows:
        times = shape_of(mask)[0] if rank > 1 else 1
        _, kept = chosen(padded, node, flat_mask, constants, times)
        others = {a - along + first: one for a, one in rows.items() if a != along}
        moved = {(a if a < first else a - rank + 1): one for a, one in valid.items()}
        outside = {
            (a if a < first else a - rank + 1): moved[a if a < first else a - rank + 1]
            for a in valid
            if a < first or a >= first + rank
        }
        if others != outside or (along in rows) is not (kept is not None):
            raise refused(node, "the rows that it writes and their places were chosen differently")
        if kept is not None and rows[along] is not kept:
            values = padded.narrowed(values, along, padded.agree(node, kept, rows[along]))
        order = edit.call(aten.sub.Tensor, edit.call(aten.cumsum.default, flat_mask, 0), 1)
        order = edit.call(aten.clamp.default, order, 0, max(shape_of(values)[along] - 1, 0))
        values = edit.call(aten.index_select.default, values, along, order)
    new = edit.call(aten.where.self, wide, values, flat)
    if dtype_of(new) != dtype_of(x):
        new = edit.call(aten._to_copy.default, new, dtype=dtype_of(x))
    padded.set(node, edit.view(new, sizes), valid)
