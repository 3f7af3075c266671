"""Positions along axes whose rows are padded, counted from either end."""

from __future__ import annotations

import torch
from torch.fx import Node

from tokexport.graph_passes.live_rows import Padded
from tokexport.graph_passes.torch_passes.calls import shape_of
from tokexport.graph_passes.torch_passes.editor import aten


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
