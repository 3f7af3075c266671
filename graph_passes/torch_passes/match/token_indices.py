"""Tells which integer tensors are positions along an axis, and which of them count it."""

from __future__ import annotations

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    constant_of,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.match.broadcast import kept_axes
from tokexport.graph_passes.torch_passes.match.integer_bounds import (
    ARANGES,
    arange_bounds,
    is_never_negative,
)


def counts_along(node: Node, axis: int) -> bool:
    """Tells whether a value is its own position along an axis, whatever it was spread over."""
    size = shape_of(node)[axis]
    place: int | None = axis
    while place is not None:
        if is_call(node, *ARANGES):
            return arange_bounds(node) == (0, size, 1) and shape_of(node) == (size,)
        constant = constant_of(node)
        if constant is not None and shape_of(node) == (size,):
            return torch.equal(constant, torch.arange(size, dtype=constant.dtype))
        kept = kept_axes(node)
        if kept is None:
            return False
        place, node = kept.get(place), operand(node)
        if place is not None and shape_of(node)[place] != size:
            return False
    return False


def counted_from_start(edit: Editor, index: Node, size: int) -> Node:
    """Turns positions counted from the end (-1 the last) into positions from the start."""
    if is_never_negative(index):
        return index
    return edit.call(aten.remainder.Scalar, index, size)


def is_index_tensor(node: object) -> bool:
    """Tells whether a value is a tensor of positions, and not a mask."""
    return isinstance(node, Node) and is_tensor(node) and dtype_of(node) == torch.int64
