"""Pads ``unique``: the values, where each element went, and how often each occurs.

Before → after::

    values, inverse, counts = unique(x (N,))
        ordered = sort(x); first = each differs from the one before
        values = ordered at nonzero(first)
        inverse[i] = how many of first are of values below x[i]
        counts[k] = how many of inverse are k

Every NaN is a value of its own, as in eager, but not in ``inverse``.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import dtype_of, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.pad.padded_rows import Padded, ValidRows, refused
from tokexport.graph_passes.torch_passes.pad.selections import Constants, chosen, highest


def unique(padded: Padded, node: Node, constants: Constants) -> None:
    """Pads ``unique`` of whole numbers or others, sorted."""
    readers = {user.args[1] for user in node.users if user.users}
    edit, x = padded.edit, padded.new(node.args[0])
    shape, valids = shape_of(x), padded.valid(x)
    if len(shape) != 1:
        if valids:
            raise refused(node, "it flattens rows that are padded")
        x = edit.view(x, [prod(shape)])
    valid = valids.get(0)
    low = x if valid is None else padded.filled(x, 0, highest(dtype_of(x)))
    ordered = edit.item(edit.call(aten.sort.default, low), 0)
    first = _first(padded, ordered, valid)
    index, kept = chosen(padded, node, first, constants)
    values = edit.call(aten.index_select.default, ordered, 0, index)
    padded.note(values, {0: kept} if kept else {})
    found: list[Any] = [values, None, None]
    if readers & {1, 2}:
        inverse = _inverse(padded, x, ordered, first)
        padded.note(inverse, valids if len(shape) == 1 else {})
        found[1] = edit.view(inverse, shape)
        padded.note(found[1], valids)
        if 2 in readers:
            found[2] = _counts(padded, inverse, shape_of(index)[0], valid)
            padded.note(found[2], {0: kept} if kept else {})
    padded.set(node, found)


def consecutive(padded: Padded, node: Node, constants: Constants) -> None:
    """Pads ``unique_consecutive``: the values alone."""
    x = padded.new(node.args[0])
    valid = padded.valid(x).get(0)
    if len(shape_of(x)) != 1 or (valid is not None and not valid.is_prefix):
        raise refused(node, "it flattens rows, or they are padded inside")
    if {user.args[1] for user in node.users if user.users} - {0}:
        raise refused(node, "its inverse or its counts are read")
    index, kept = chosen(padded, node, _first(padded, x, valid), constants)
    values = padded.edit.call(aten.index_select.default, x, 0, index)
    padded.note(values, {0: kept} if kept else {})
    padded.set(node, [values, None, None])


def _first(padded: Padded, ordered: Node, valid: ValidRows | None) -> Node:
    """Returns (N,) which of sorted values differ from the one before."""
    edit, (size,) = padded.edit, shape_of(ordered)
    mask = padded.constant((1,), True, torch.bool)
    if size > 1:
        later = edit.call(aten.slice.Tensor, ordered, 0, 1, size)
        before = edit.call(aten.slice.Tensor, ordered, 0, 0, size - 1)
        differs = edit.call(aten.ne.Tensor, later, before)
        mask = edit.call(aten.cat.default, [mask, differs], 0)
    if valid is None:
        return mask
    real = edit.call(aten.lt.Tensor, padded.counted(size), valid.count)  # the real ones come first
    return edit.call(aten.logical_and.default, mask, real)


def _inverse(padded: Padded, x: Node, ordered: Node, first: Node) -> Node:
    """Returns (N,) the place of each element's value among the distinct ones."""
    edit, (size,) = padded.edit, shape_of(ordered)
    below = edit.call(
        aten.lt.Tensor, edit.view(ordered, [1, size]), edit.view(x, [shape_of(x)[0], 1])
    )
    counted = edit.call(aten.logical_and.default, below, edit.view(first, [1, size]))
    return edit.call(aten.sum.dim_IntList, counted, [1])


def _counts(padded: Padded, inverse: Node, room: int, valid: ValidRows | None) -> Node:
    """Returns (room,) how many elements have each of the distinct values."""
    edit, (size,) = padded.edit, shape_of(inverse)
    places = edit.view(padded.counted(room), [room, 1])
    same = edit.call(aten.eq.Tensor, places, edit.view(inverse, [1, size]))
    if valid is not None:
        same = edit.call(aten.logical_and.default, same, edit.view(valid.mask, [1, size]))
    return edit.call(aten.sum.dim_IntList, same, [1])
