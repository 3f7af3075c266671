"""Drops calls that only pass their input on, and empty parts of a concatenation.

Before → after::

    clone(x), alias(x), detach(x), lift_fresh_copy(x)   →  x
    expand, repeat, slice, permute, squeeze, view(dtype) that change nothing  →  x
    cat([empty, x], d)                                   →  cat([x], d)  →  x
    view, _unsafe_view                                   →  reshape
    type_as(x, y)                                        →  _to_copy(x, dtype=y.dtype)
    reshape(reshape(x, s), t)                            →  reshape(x, t)
    _assert_tensor_metadata(x, …)                        →

The graph is functional here, so a copy is never a second variable; without it a view may no longer
fit the strides, hence reshape. A squeeze of an axis that is not 1 does nothing in torch
(torch.squeeze), while ONNX's Squeeze refuses it. What the assertions hold was checked while
tracing; left in, they count as readers.
"""

from __future__ import annotations

from functools import reduce
from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    operands,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass

_COPIES = frozenset(
    {
        aten.clone.default,
        aten.alias.default,
        aten.detach.default,
        aten.lift_fresh_copy.default,
        aten.contiguous.default,
    }
)
#: Calls that give back their input where shape and dtype are the same before and after.
_IDENTITIES_OF_SHAPE = (
    aten.expand.default,
    aten.repeat.default,
    aten.reshape.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.slice.Tensor,
    aten._to_copy.default,
    aten.to.dtype,
    aten.view.dtype,
)


class DropIdentities(TorchPass):
    """Removes the calls that give back what they take."""

    name: ClassVar[str] = "drop identities"
    forbidden: ClassVar[frozenset[object]] = _COPIES

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many calls went."""
        changed = 0
        for node in list(edit.graph.nodes):
            if is_call(node, aten._assert_tensor_metadata.default):
                edit.graph.erase_node(node)
                changed += 1
            if node.op != "call_function" or not is_tensor(node):
                continue
            if is_call(node, aten.view.default, aten._unsafe_view.default):
                node.target = aten.reshape.default
            if is_call(node, aten.type_as.default):
                node.target, node.args = aten._to_copy.default, (operand(node),)
                node.kwargs = {"dtype": dtype_of(node)}
                changed += 1
            if is_call(node, aten.reshape.default) and is_call(operand(node), aten.reshape.default):
                node.replace_input_with(operand(node), operand(operand(node)))
                changed += 1
            changed += _drop_empty_parts(node)
            source = _passed_on(node)
            if source is not None:
                edit.replace(node, source)
                changed += 1
        return changed


def _passed_on(node: Node) -> Node | None:
    """Returns the input that the node gives back unchanged, if it does."""
    if is_call(node, aten.cat.default):
        parts = operands(node, "tensors")
        return parts[0] if len(parts) == 1 else None
    if is_call(node, *_COPIES):
        return operand(node)
    if is_call(node, *_IDENTITIES_OF_SHAPE, aten.copy.default):
        source = operand(node, "src" if is_call(node, aten.copy.default) else "self")
        same = (shape_of(source), dtype_of(source)) == (shape_of(node), dtype_of(node))
        return source if same else None
    if is_call(node, aten.permute.default):
        order = argument(node, "dims")
        return operand(node) if [a % len(order) for a in order] == [*range(len(order))] else None
    return None


def _drop_empty_parts(node: Node) -> bool:
    """Takes the parts without elements out of a concatenation that has others."""
    if not is_call(node, aten.cat.default):
        return False
    parts = operands(node, "tensors")
    full = [part for part in parts if 0 not in shape_of(part)]
    if not full or len(full) == len(parts):
        return False
    if reduce(torch.promote_types, map(dtype_of, full)) != dtype_of(node):
        return False  # an empty part decides the dtype
    node.update_arg(0, full)
    return True
