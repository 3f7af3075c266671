"""Tells which integer tensors count positions along an axis.

Only what the graph itself makes is known: the results of sorts, arg-max and arange, and what moves
their values about. Integers that come from outside may be anything: negative, or beyond 2²⁴, from
where on float32 no longer holds every integer.
"""

from __future__ import annotations

import operator
from typing import Final

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.broadcast import kept_axes
from tokexport.graph_passes.torch_passes.calls import (
    argument,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    operands,
    shape_of,
)
from tokexport.graph_passes.torch_passes.editor import Editor, aten

#: Integers up to here are exact in float32.
LARGEST_EXACT: Final = 2**24

_MAKERS = (
    aten.argsort.default,
    aten.argsort.stable,
    aten.argmax.default,
    aten.argmin.default,
)
_VALUES_AND_INDICES = (
    aten.sort.default,
    aten.sort.stable,
    aten.topk.default,
    aten.max.dim,
    aten.min.dim,
)
_ARANGES = (aten.arange.default, aten.arange.start, aten.arange.start_step)
_KEEPERS = (
    aten.slice.Tensor,
    aten.select.int,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.repeat.default,
    aten.clone.default,
    aten.gather.default,
    aten.take_along_dim.default,
    aten.index_select.default,
    aten.index.Tensor,
    aten.permute.default,
    aten.transpose.int,
)
_CONVERSIONS = (aten._to_copy.default, aten.to.dtype)
_EXACT = (torch.int32, torch.int64, torch.float32, torch.float64)
_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)


def is_token_index(node: object) -> bool:
    """Tells whether a value counts positions along an axis: 0 ≤ value < 2²⁴."""
    if not isinstance(node, Node) or node.op != "call_function":
        return False
    if is_call(node, *_MAKERS):
        return True
    if is_call(node, *_ARANGES):
        first, stop, step = arange_bounds(node)
        return first >= 0 and step > 0 and stop <= LARGEST_EXACT
    if is_call(node, *_KEEPERS):
        return is_token_index(operand(node))
    if is_call(node, *_CONVERSIONS):
        return dtype_of(node) in _EXACT and is_token_index(operand(node))
    if is_call(node, torch.ops.tokexport.gather_tokens.default):
        return is_token_index(operand(node, "x"))
    if is_call(node, aten.cat.default):
        return all(is_token_index(part) for part in operands(node, "tensors"))
    call = node.args[0] if node.target is operator.getitem else None
    if is_call(call, *_VALUES_AND_INDICES):
        assert isinstance(call, Node)
        return bool(node.args[1] == 1) or is_token_index(operand(call))
    if is_call(call, *_SPLITS):
        assert isinstance(call, Node)
        return is_token_index(operand(call))
    return is_call(call, torch.ops.tokexport.bipartite_match.default)


def arange_bounds(node: Node) -> tuple[float, float, float]:
    """Returns (first, stop, step) of an arange."""
    first: float = 0 if node.target is aten.arange.default else argument(node, "start")
    stop: float = argument(node, "end")
    step: float = argument(node, "step") if node.target is aten.arange.start_step else 1
    return first, stop, step


def counts_along(node: Node, axis: int) -> bool:
    """Tells whether a value is its own position along an axis, whatever it was spread over."""
    size = shape_of(node)[axis]
    place: int | None = axis
    while place is not None:
        if is_call(node, *_ARANGES):
            return arange_bounds(node) == (0, size, 1) and shape_of(node) == (size,)
        kept = kept_axes(node)
        if kept is None:
            return False
        place, node = kept.get(place), operand(node)
        if place is not None and shape_of(node)[place] != size:
            return False
    return False


def counted_from_start(edit: Editor, index: Node, size: int) -> Node:
    """Turns positions counted from the end (-1 the last) into positions from the start."""
    return index if is_token_index(index) else edit.call(aten.remainder.Scalar, index, size)


def is_index_tensor(node: object) -> bool:
    """Tells whether a value is a tensor of positions, and not a mask."""
    return isinstance(node, Node) and is_tensor(node) and dtype_of(node) == torch.int64
