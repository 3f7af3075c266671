"""Positions along axes whose rows are padded, counted from either end, and numbers of rows."""

from __future__ import annotations

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import shape_of
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.pad.live_rows import Live, Padded


def length_of(padded: Padded, x: Node, axis: int) -> Node:
    """Returns how many rows an axis has, of rank 0."""
    live = padded.live(x).get(axis)
    return padded.constant((), shape_of(x)[axis], torch.int64) if live is None else live.count


def from_the_front(padded: Padded, position: Node, length: Node) -> Node:
    """Returns positions from the front; a negative one counts from the end of the real rows."""
    edit = padded.edit
    behind = edit.call(aten.add.Tensor, position, length)
    negative = edit.call(aten.lt.Scalar, position, 0)
    found = edit.call(aten.where.self, negative, behind, position)
    padded.note(found, padded.live(position))
    return found


def numbers_of(padded: Padded, live: Live, width: int) -> Live:
    """Returns the numbers of rows of so many, one behind another.

    Under ``("rows", numbers, width)`` the memo keeps the rows that they are of.
    """
    if width == 1:
        return live
    key = ("numbers", live, width)
    if key not in padded.memo:
        edit, room = padded.edit, shape_of(live.mask)[0]
        wide = edit.expand(edit.view(live.mask, [room, 1]), [room, width])
        count = edit.call(aten.mul.Tensor, live.count, width)
        mask = edit.view(wide, [room * width])
        padded.memo[key] = Live(mask, count, live.front, live.sure * width)
        padded.memo["rows", padded.memo[key], width] = live
    found: Live = padded.memo[key]
    return found
