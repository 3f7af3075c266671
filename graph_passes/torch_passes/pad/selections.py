"""Pads the calls whose number of results depends on the values: masks, nonzero, unique.

Before → after::

    nonzero(mask (N,)) → (u, 1)     keys = where(mask, i, N + i); index = the cap smallest of them
                                    valid = arange(cap) < sum(mask)
                                    index = where(valid, index, index[0])
    x[:, mask] → (1, u, C)          index_select(x, 1, index)
    unique(ids)                     the sorted ids at nonzero(each differs from the one before)

A padding row is a copy of the first valid one, so that what is computed row by row stays finite:
the logarithm of scores above a threshold, say. A mask that no input reaches is computed at once:
its count is known, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Final

import torch
from torch import Tensor
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import dtype_of, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.pad.op_rules import aligned
from tokexport.graph_passes.torch_passes.pad.padded_rows import Padded, ValidRows, refused
from tokexport.graph_passes.torch_passes.pad.row_places import numbers_of

#: Computes a value that no input reaches; None where one does.
Constants = Callable[[Node], Tensor | None]
#: Up to this number of candidates their positions are exact in float32.
_LARGEST: Final = 1 << 22


def chosen(
    padded: Padded, node: Node, mask: Node, constants: Constants, times: int = 1
) -> tuple[Node, ValidRows | None]:
    """Returns the positions (K,) of the true rows of a mask (N,), and which of the K are real.

    Args:
        padded: The values.
        node: The call that chooses.
        mask: Truth values (N,).
        constants: Computes a value that no input reaches.
        times: Of how many images the N rows are.
    """
    mask = padded.first(_anded(padded, mask))
    key = ("chosen", mask)
    if key in padded.memo:
        found: tuple[Node, ValidRows | None] = padded.memo[key]
        return found
    size = shape_of(mask)[0]
    known = constants(mask)
    if known is not None:
        positions = known.nonzero()[:, 0].tolist()
        known_rows = _listed(padded, positions)
        padded.memo[key] = known_rows, None
        return known_rows, None
    room = padded.room_for(node, size, times)
    if size > _LARGEST:
        raise refused(node, f"it chooses among {size} numbers")
    edit = padded.edit
    count = edit.call(aten.sum.default, mask)
    place = edit.call(aten._to_copy.default, padded.counted(size), dtype=torch.float32)
    late = edit.call(aten.add.Tensor, place, float(size))
    keys = edit.call(aten.neg.default, edit.call(aten.where.self, mask, place, late))
    index = edit.item(edit.call(aten.topk.default, keys, room), 1)
    # Of more than there is room for, no position that is counted lies beyond it.
    held = edit.call(aten.clamp_max.default, count, room) if room < size else count
    valid = ValidRows(edit.call(aten.lt.Tensor, padded.counted(room), count), held, True, 0)
    index = edit.call(aten.where.self, valid.mask, index, edit.cut(index, 0, 0, 1))
    padded.chosen(node, count, room, size)
    padded.memo[key] = index, valid
    return index, valid


def _anded(padded: Padded, mask: Node) -> Node:
    """Returns a mask that is false in its padding rows."""
    valid = padded.valid(mask).get(0)
    if valid is None:
        return mask
    key = ("anded", mask)
    if key not in padded.memo:
        padded.memo[key] = padded.edit.call(aten.logical_and.default, mask, valid.mask)
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
    shape, valid = shape_of(mask), padded.valid(mask)
    flags = mask if dtype_of(mask) == torch.bool else edit.call(aten.ne.Scalar, mask, 0)
    for axis, one in valid.items():
        view = edit.view(one.mask, [-1 if a == axis else 1 for a in range(len(shape))])
        flags = edit.call(aten.logical_and.default, flags, view)
    return edit.view(flags, [prod(shape)])


def columns(
    padded: Padded, node: Node, mask: Node, constants: Constants
) -> tuple[list[Node], ValidRows | None]:
    """Returns the coordinates (K,) along every axis of what is true in a mask, row by row."""
    for one in padded.valid(mask).values():
        if not one.is_prefix:
            raise refused(node, "its positions are counted over rows that are padded inside")
    shape, edit = shape_of(mask), padded.edit
    times = shape[0] if len(shape) > 1 else 1
    index, valid = chosen(padded, node, flat_once(padded, node, mask), constants, times)
    found = []
    for axis in range(len(shape)):
        below = prod(shape[axis + 1 :])
        part = index
        if below > 1:
            part = edit.call(aten.div.Tensor_mode, part, below, rounding_mode="floor")
        if axis:
            part = edit.call(aten.remainder.Scalar, part, shape[axis])
        found.append(part)
    return found, valid


def flat_once(padded: Padded, node: Node, mask: Node) -> Node:
    """Returns a mask of any rank as truth values (N,), the same for the same mask."""
    key = ("flat", mask)
    if key not in padded.memo:
        padded.memo[key] = _flat(padded, node, mask)
    found: Node = padded.memo[key]
    return found


def nonzero(padded: Padded, node: Node, constants: Constants) -> None:
    """Pads ``nonzero``: (K, rank) coordinates."""
    parts, valid = columns(padded, node, padded.new(node.args[0]), constants)
    edit = padded.edit
    wide = [edit.call(aten.unsqueeze.default, part, 1) for part in parts]
    new = wide[0] if len(wide) == 1 else edit.call(aten.cat.default, wide, 1)
    padded.set(node, new, {0: valid} if valid else {})


def where(padded: Padded, node: Node, constants: Constants) -> None:
    """Pads ``where`` of a condition alone: a list of coordinates."""
    parts, valid = columns(padded, node, padded.new(node.args[0]), constants)
    for part in parts:
        padded.note(part, {0: valid} if valid else {})
    padded.set(node, parts)


def masked_select(padded: Padded, node: Node, constants: Constants) -> None:
    """Pads ``masked_select``: (K,) numbers; of whole rows, room is for so many of them."""
    x, mask = (padded.new(part) for part in node.args[:2])
    shape = torch.broadcast_shapes(shape_of(x), shape_of(mask))
    edit = padded.edit
    (x, mask), valid = aligned(padded, node, (x, mask), len(shape))
    shape = torch.broadcast_shapes(shape_of(x), shape_of(mask))
    own = [*[1] * (len(shape) - len(shape_of(mask))), *shape_of(mask)]
    rank = max((axis + 1 for axis, size in enumerate(own) if size != 1), default=0)
    if any(axis >= rank for axis in valid):
        rank = len(shape)
    lead, width = shape[:rank], prod(shape[rank:])
    rows = edit.expand(edit.view(mask, own[:rank]), lead)
    padded.note(rows, valid)
    times = shape[0] if rank > 1 else 1
    index, kept = chosen(padded, node, flat_once(padded, node, rows), constants, times)
    flat = edit.view(edit.expand(x, shape), [prod(lead), width])
    new = edit.view(edit.call(aten.index_select.default, flat, 0, index), [-1])
    padded.set(node, new, {0: numbers_of(padded, kept, width)} if kept else {})


def highest(dtype: torch.dtype) -> float | int:
    """Returns the number that sorts after all others of a type."""
    return torch.inf if dtype.is_floating_point else torch.iinfo(dtype).max
