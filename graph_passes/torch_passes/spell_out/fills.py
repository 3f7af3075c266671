"""Writes a value at given places of an axis as a selection.

Before → after, along an axis of n::

    index_fill(x, d, index, v)   →  where(any(arange(n) = index mod n), v, x)

What it is in ONNX otherwise is a scatter over all axes, or nothing at all.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    dtype_of,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling
from tokexport.graph_passes.torch_passes.spell_out.sign_bits import as_type


class SpellOutFills(NodePass):
    """Rewrites ``index_fill``."""

    name: ClassVar[str] = "spell out fills"

    targets = (aten.index_fill.int_Scalar, aten.index_fill.int_Tensor)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches every call."""
        return _spelled


def _spelled(edit: Editor, node: Node) -> Node:
    x, index, value = operand(node), operand(node, "index"), argument(node, "value")
    shape, dtype = shape_of(x), dtype_of(x)
    if 0 in shape_of(index) or 0 in shape:
        return x
    along = axis(node)
    size = shape[along] if shape else 1
    index = edit.view(as_type(edit, index, torch.int64), (-1, 1))
    index = edit.call(
        aten.where.self,
        edit.call(aten.lt.Scalar, index, 0),
        edit.call(aten.add.Scalar, index, size),
        index,
    )
    hits = edit.call(aten.eq.Tensor, index, edit.constant(torch.arange(size)[None]))
    hit = edit.call(aten.any.dim, hits, 0)
    hit = edit.view(hit, (size, *[1] * (len(shape) - 1 - along)) if shape else ())
    if isinstance(value, Node):
        value = as_type(edit, edit.view(value, ()), dtype)
    else:
        value = edit.constant(torch.tensor(value, dtype=dtype))
    return edit.call(aten.where.self, hit, value, x)
