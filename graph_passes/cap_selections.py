"""Pads the calls whose number of results depends on the values: masks, nonzero, unique.

Before → after::

    nonzero(mask (N,)) → (u, 1)     keys = where(mask, i, N + i); index = the cap smallest of them
                                    live = arange(cap) < sum(mask)
                                    index = where(live, index, index[0])
    x[:, mask] → (1, u, C)          index_select(x, 1, index)
    unique(ids)                     the sorted ids at nonzero(each differs from the one before)

A dead row is a copy of the first live one, so that what is computed row by row stays finite: the
logarithm of scores above a threshold, say. A mask that no input reaches is computed at once: its
count is known, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Node

from tokexport.graph_passes.errors import TokenCountError
from tokexport.graph_passes.live_rows import Live, Padded, Selection, refused
from tokexport.graph_passes.torch_passes.calls import argument, dtype_of, shape_of
from tokexport.graph_passes.torch_passes.editor import aten, source_line

#: Computes a value that no input reaches; None where one does.
Constants = Callable[[Node], Tensor | None]
#: Up to this number of candidates their positions are exact in float32.
_LARGEST: Final = 1 << 22


def chosen(
    padded: Padded, node: Node, mask: Node, constants: Constants
) -> tuple[Node, Live | None]:
    """Returns the positions (K,) of the true rows of a mask (N,), and which of the K are real."""
    mask = padded.first(_anded(padded, mask))
    key = ("chosen", mask)
    if key in padded.memo:
        found: tuple[Node, Live | None] = padded.memo[key]
        return found
    size = shape_of(mask)[0]
    known = constants(mask)
    if known is not None:
        positions = known.nonzero()[:, 0].tolist()
        known_rows = _listed(padded, positions)
        padded.memo[key] = known_rows, None
        return known_rows, None
    if padded.cap is None:
        raise TokenCountError(
            f"How many rows {node.target} gives depends on the values of the input, and a static "
            "graph has no room for that.",
            where=f"At {source_line(node) or node.name}",
        )
    if size > _LARGEST:
        raise refused(node, f"it chooses among {size} numbers")
    edit = padded.edit
    cap = min(padded.cap, size)
    count = edit.call(aten.sum.default, mask)
    place = edit.call(aten._to_copy.default, padded.counted(size), dtype=torch.float32)
    late = edit.call(aten.add.Tensor, place, float(size))
    keys = edit.call(aten.neg.default, edit.call(aten.where.self, mask, place, late))
    index = edit.item(edit.call(aten.topk.default, keys, cap), 1)
    live = Live(edit.call(aten.lt.Tensor, padded.counted(cap), count), count, True, 0)
    index = edit.call(aten.where.self, live.mask, index, edit.cut(index, 0, 0, 1))
    padded.selections.append(Selection(count, cap, source_line(node)))
    padded.memo[key] = index, live
    return index, live


def _anded(padded: Padded, mask: Node) -> Node:
    """Returns a mask that is false in its dead rows."""
    live = padded.live(mask).get(0)
    if live is None:
        return mask
    key = ("anded", mask)
    if key not in padded.memo:
        padded.memo[key] = padded.edit.call(aten.logical_and.default, mask, live.mask)
    found: Node = padded.memo[key]
    return found


def _listed(padded: Padded, positions: list[int]) -> Node:
    """Inserts positions that are known, as parts of equal steps."""
    edit = padded.edit
    runs: list[tuple[int, int, int]] = []
    at = 0
    while at < len(positions):
        step = positions[at + 1] - positions[at] if at + 1 < len(positions) else 1
        end = at + 1
        while end < len(positions) and positions[end] - positions[end - 1] == step:
            end += 1
        runs.append((positions[at], positions[end - 1] + 1, step))
        at = end
    device = torch.device("cpu")
    parts = [
        edit.call(aten.arange.start_step, *run, device=device, pin_memory=False) for run in runs
    ]
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return padded.constant((0,), 0, torch.int64)
    return edit.call(aten.cat.default, parts, 0)


def _flat(padded: Padded, node: Node, mask: Node) -> Node:
    """Returns a mask of any rank as truth values (N,), its only padded axis with it."""
    edit = padded.edit
    shape, live = shape_of(mask), padded.live(mask)
    flags = mask if dtype_of(mask) == torch.bool else edit.call(aten.ne.Scalar, mask, 0)
    for axis, one in live.items():
        view = edit.view(one.mask, [-1 if a == axis else 1 for a in range(len(shape))])
        flags = edit.call(aten.logical_and.default, flags, view)
    return edit.view(flags, [prod(shape)])


def columns(
    padded: Padded, node: Node, mask: Node, constants: Constants
) -> tuple[list[Node], Live | None]:
    """Returns the coordinates (K,) along every axis of what is true in a mask, row by row."""
    for one in padded.live(mask).values():
        if not one.front:
            raise refused(node, "its positions are counted over rows that are padded inside")
    shape, edit = shape_of(mask), padded.edit
    index, live = chosen(padded, node, _flat_once(padded, node, mask), constants)
    found = []
    for axis in range(len(shape)):
        below = prod(shape[axis + 1 :])
        part = index
        if below > 1:
            part = edit.call(aten.div.Tensor_mode, part, below, rounding_mode="floor")
        if axis:
            part = edit.call(aten.remainder.Scalar, part, shape[axis])
        found.append(part)
    return found, live


def _flat_once(padded: Padded, node: Node, mask: Node) -> Node:
    key = ("flat", mask)
    if key not in padded.memo:
        padded.memo[key] = _flat(padded, node, mask)
    found: Node = padded.memo[key]
    return found


def nonzero(padded: Padded, node: Node, constants: Constants) -> None:
    """Pads ``nonzero``: (K, rank) coordinates."""
    parts, live = columns(padded, node, padded.new(node.args[0]), constants)
    edit = padded.edit
    wide = [edit.call(aten.unsqueeze.default, part, 1) for part in parts]
    new = wide[0] if len(wide) == 1 else edit.call(aten.cat.default, wide, 1)
    padded.set(node, new, {0: live} if live else {})


def where(padded: Padded, node: Node, constants: Constants) -> None:
    """Pads ``where`` of a condition alone: a list of coordinates."""
    parts, live = columns(padded, node, padded.new(node.args[0]), constants)
    for part in parts:
        padded.note(part, {0: live} if live else {})
    padded.set(node, parts)


def masked_select(padded: Padded, node: Node, constants: Constants) -> None:
    """Pads ``masked_select``: (K,) numbers."""
    x, mask = (padded.new(part) for part in node.args[:2])
    shape = torch.broadcast_shapes(shape_of(x), shape_of(mask))
    edit = padded.edit
    live = padded.live(mask) if len(shape_of(mask)) == len(shape) else {}
    if padded.live(x) != live:
        raise refused(node, "its mask and what it is taken from are padded differently")
    wide = edit.expand(mask, shape)
    padded.note(wide, live)
    index, kept = chosen(padded, node, _flat_once(padded, node, wide), constants)
    flat = edit.view(edit.expand(x, shape), [prod(shape)])
    new = edit.call(aten.index_select.default, flat, 0, index)
    padded.set(node, new, {0: kept} if kept else {})


def unique(padded: Padded, node: Node, constants: Constants) -> None:
    """Pads ``unique`` of whole numbers or others: the values alone, sorted."""
    readers = {user.args[1] for user in node.users if user.users}
    if not readers <= {0}:
        raise refused(node, "its inverse or its counts are read")
    edit, x = padded.edit, padded.new(node.args[0])
    live = padded.live(x)
    if len(shape_of(x)) != 1:
        if live:
            raise refused(node, "it flattens rows that are padded")
        x = edit.view(x, [prod(shape_of(x))])
    size = shape_of(x)[0]
    if live:
        x = padded.filled(x, 0, _highest(dtype_of(x)))
    ordered = edit.item(edit.call(aten.sort.default, x), 0)
    first = padded.constant((1,), True, torch.bool)
    later = edit.call(aten.slice.Tensor, ordered, 0, 1, size)
    before = edit.call(aten.slice.Tensor, ordered, 0, 0, size - 1)
    differs = edit.call(aten.ne.Tensor, later, before)
    mask = edit.call(aten.cat.default, [first, differs], 0) if size > 1 else first
    if live:  # sorted, the real ones come first
        real = edit.call(aten.lt.Tensor, padded.counted(size), live[0].count)
        mask = edit.call(aten.logical_and.default, mask, real)
    index, kept = chosen(padded, node, mask, constants)
    new = edit.call(aten.index_select.default, ordered, 0, index)
    padded.set(node, [new, None, None])
    padded.note(new, {0: kept} if kept else {})


def _highest(dtype: torch.dtype) -> float | int:
    return torch.inf if dtype.is_floating_point else torch.iinfo(dtype).max


def index(padded: Padded, node: Node, constants: Constants) -> None:
    """Pads ``x[…]`` with one mask, or with positions (K,)."""
    x: Node = padded.new(node.args[0])
    parts: list[Any] = padded.new(argument(node, "indices"))
    given = [a for a, part in enumerate(parts) if part is not None]
    edit, live = padded.edit, padded.live(x)
    first = given[0]
    masks = [a for a in given if dtype_of(parts[a]) in (torch.bool, torch.uint8)]
    if masks:
        if len(given) > 1:
            raise refused(node, "it indexes with a mask and something else at once")
        mask = parts[first]
        rank = len(shape_of(mask))
        inner = {a - first: one for a, one in live.items() if first <= a < first + rank}
        if padded.live(mask) != inner:
            raise refused(node, "its mask and what it is taken from are padded differently")
        rows, kept = chosen(padded, node, _flat_once(padded, node, mask), constants)
        shape = shape_of(x)
        flat = edit.view(x, [*shape[:first], prod(shape_of(mask)), *shape[first + rank :]])
        new = edit.call(aten.index_select.default, flat, first, rows)
        after = {
            a if a < first else a - rank + 1: one
            for a, one in live.items()
            if a < first or a >= first + rank
        }
        if kept:
            after[first] = kept
        padded.set(node, new, after)
        return
    if any(len(shape_of(parts[a])) != 1 for a in given) and (
        live or any(padded.live(parts[a]) for a in given)
    ):
        raise refused(node, "it indexes with positions of several axes")
    kinds = {padded.live(parts[a]).get(0) for a in given}
    if kinds == {None} and not live:
        padded.set(node, edit.call(node.target, x, parts), {})
        return
    if len(kinds) > 1 or given != list(range(first, first + len(given))):
        raise refused(node, "it indexes several axes whose positions are padded differently")
    for a in given:
        if a in live and not live[a].front:
            raise refused(node, "it reads positions among rows that are padded inside")
    places = [part if part is None else padded.positions(part) for part in parts]
    new = edit.call(node.target, x, places)
    (kept,) = kinds
    gone = len(given) - 1
    after = {a if a < first else a - gone: one for a, one in live.items() if a not in given}
    if kept:
        after[first] = kept
    padded.set(node, new, after)


def put(padded: Padded, node: Node, constants: Constants) -> None:
    """Pads ``x[…, mask] = values``: where(mask, the value at the row's rank in mask, x)."""
    x, values = padded.new(node.args[0]), padded.new(argument(node, "values"))
    parts: list[Any] = padded.new(argument(node, "indices"))
    given = [a for a, part in enumerate(parts) if part is not None]
    dim, mask = given[0], parts[given[0]]
    fits = len(given) == 1 and dtype_of(mask) == torch.bool and len(shape_of(mask)) == 1
    if not fits or argument(node, "accumulate") or padded.live(x) or padded.live(mask):
        raise refused(node, "it writes other than with one mask over one fixed axis")
    _, kept = chosen(padded, node, mask, constants)
    edit, rank = padded.edit, len(shape_of(x))
    along = dim - (rank - len(shape_of(values)))  # leading axes of size 1 are left out of values
    if along < 0 or padded.live(values) != ({along: kept} if kept else {}):
        raise refused(node, "what it writes was chosen otherwise than where it goes")
    order = edit.call(aten.sub.Tensor, edit.call(aten.cumsum.default, mask, 0), 1)
    order = edit.call(aten.clamp.default, order, 0, max(shape_of(values)[along] - 1, 0))
    rows = edit.call(aten.index_select.default, values, along, order)
    wide = edit.view(mask, [-1 if a == dim else 1 for a in range(rank)])
    padded.set(node, edit.call(aten.where.self, wide, rows, x), {})
