"""Writes an assignment under a mask as a selection.

Before → after::

    x[mask] = v               →  where(mask, v, x)
    x[:, mask] = v            →  where(mask[None, :], v, x)
    x[mask] += v              →  where(mask, x + v, x)

where ``v`` is one value, or one row for everything that the mask selects: what is written does not
depend on how many there are. Other masked writes are left alone. An ``index_put`` with a mask is a
NonZero in ONNX, which TensorRT does not take.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass


class MaskedAssignToWhere(TorchPass):
    """Turns index_put with one mask into where."""

    name: ClassVar[str] = "masked assign to where"
    comes_before: ClassVar[tuple[str, ...]] = ("scatter rows",)

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many writes it changed."""
        changed = 0
        for node in list(edit.graph.nodes):
            if is_call(node, aten.index_put.default):
                with edit.before(node):
                    new = _selection(edit, node)
                if new is not None:
                    edit.replace(node, new)
                    changed += 1
        return changed


def _selection(edit: Editor, node: Node) -> Node | None:
    data, indices = operand(node), list(argument(node, "indices"))
    given = [a for a, index in enumerate(indices) if index is not None]
    if len(given) != 1 or not is_tensor(indices[given[0]]):
        return None
    first, mask, values = given[0], indices[given[0]], operand(node, "values")
    if dtype_of(mask) != torch.bool or dtype_of(values) != dtype_of(data):
        return None
    behind = len(shape_of(data)) - first - len(shape_of(mask))  # axes that the mask does not see
    sizes = shape_of(values)
    counted = len(sizes) - behind - 1  # where values have an axis for what the mask selects
    if len(sizes) > behind and (counted > 0 or sizes[counted] != 1):
        return None
    row = edit.view(values, sizes[1:]) if len(sizes) > behind else values
    wide = edit.view(mask, (*shape_of(mask), *[1] * behind))
    if argument(node, "accumulate"):
        row = edit.call(aten.add.Tensor, data, row)
    return edit.call(aten.where.self, wide, row, data)
