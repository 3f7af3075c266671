"""Computes positions along padded axes, counted from either end, and numbers of rows."""

from __future__ import annotations

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import shape_of
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.pad.padded_rows import Padded, ValidRows


def length_of(padded: Padded, x: Node, axis: int) -> Node:
    """Returns how many rows an axis has, of rank 0."""
    valid = padded.valid(x).get(axis)
    return padded.constant((), shape_of(x)[axis], torch.int64) if valid is None else valid.count


def from_the_front(padded: Padded, position: Node, length: Node) -> Node:
    """Returns positions from the front; a negative one counts from the end of the real rows."""
    edit = padded.edit
    behind = edit.call(aten.add.Tensor, position, length)
    negative = edit.call(aten.lt.Scalar, position, 0)
    found = edit.call(aten.where.self, negative, behind, position)
    padded.note(found, padded.valid(position))
    return found


def numbers_of(padded: Padded, valid: ValidRows, width: int) -> ValidRows:
    """Returns the numbers of rows of so many, one behind another.

    Under ``("rows", numbers, width)`` the memo keeps the rows that they are of.
    """
    if width == 1:
        return valid
    key = ("numbers", valid, width)
    if key not in padded.memo:
        edit, room = padded.edit, shape_of(valid.mask)[0]
        wide = edit.expand(edit.view(valid.mask, [room, 1]), [room, width])
        count = edit.call(aten.mul.Tensor, valid.count, width)
        mask = edit.view(wide, [room * width])
        padded.memo[key] = ValidRows(mask, count, valid.is_prefix, valid.always_valid * width)
        padded.memo["rows", padded.memo[key], width] = valid
    found: ValidRows = padded.memo[key]
    return found
