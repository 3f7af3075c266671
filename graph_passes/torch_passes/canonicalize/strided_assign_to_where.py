"""Writes strided and diagonal reads and writes of a tensor by positions.

Before → after::

    as_strided(x, size, stride, offset)        →  flatten(x)[positions]
    as_strided_scatter(x, src, size, …)        →  cat([flatten(x), flatten(src)])[positions]
    diagonal_scatter(x, src, offset, a, b)     →  where(diagonal, src spread, x)
    range(start, end, step)                    →  a constant

``fill_diagonal_`` is the second of these, a write into ``x.diagonal()`` the third. ONNX knows no
strides; they are those of the tensor as it is traced, which is contiguous or stays as it is.
"""

from __future__ import annotations

from math import prod
from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    is_call,
    normal_axis,
    operand,
    shape_of,
    value,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.match.constant_values import ConstantValues

_BY_STRIDES = (aten.as_strided.default, aten.as_strided_scatter.default)
_RANGES = (aten.range.default, aten.range.step)


class StridedAssignToWhere(TorchPass):
    """Rewrites reads and writes by strides and diagonals."""

    name: ClassVar[str] = "strided assign to where"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many calls it changed."""
        constants = ConstantValues()
        changed = 0
        for node in list(edit.graph.nodes):
            with edit.before(node):
                if is_call(node, *_BY_STRIDES):
                    new = _by_positions(edit, node)
                elif is_call(node, aten.diagonal_scatter.default):
                    new = _on_diagonal(edit, node)
                elif is_call(node, *_RANGES) and (known := constants.of(node)) is not None:
                    new = edit.constant(known)
                else:
                    continue
            if new is not None:
                edit.replace(node, new)
                changed += 1
        return changed


def _by_positions(edit: Editor, node: Node) -> Node | None:
    x = operand(node)
    if not value(x).is_contiguous():
        return None
    count = prod(shape_of(x))
    offset = argument(node, "storage_offset") or 0
    places = torch.arange(count)
    view = torch.as_strided(places, argument(node, "size"), argument(node, "stride"), offset)
    flat = edit.view(x, (count,))
    if is_call(node, aten.as_strided.default):
        taken = edit.call(aten.index_select.default, flat, 0, edit.constant(view.reshape(-1)))
        return edit.view(taken, view.shape)
    source = operand(node, "src")
    places[view.reshape(-1)] = count + torch.arange(view.numel())
    both = edit.call(aten.cat.default, [flat, edit.view(source, (view.numel(),))])
    taken = edit.call(aten.index_select.default, both, 0, edit.constant(places))
    return edit.view(taken, shape_of(x))


def _on_diagonal(edit: Editor, node: Node) -> Node:
    x, source, offset = operand(node), operand(node, "src"), argument(node, "offset")
    rank = len(shape_of(x))
    rows, columns = (normal_axis(argument(node, name), rank) for name in ("dim1", "dim2"))
    order = [a for a in range(rank) if a not in (rows, columns)] + [rows, columns]
    turned = edit.permute(x, order)
    height, width = shape_of(turned)[-2:]
    diagonal = torch.ones(height, width, dtype=torch.bool)
    diagonal = diagonal.triu(offset) & diagonal.tril(offset)
    # a number of the diagonal for each row, from the first that it crosses on
    first = max(-offset, 0)
    length = shape_of(source)[-1]
    places = (torch.arange(height) - first).clamp(0, length - 1)
    spread = edit.call(aten.index_select.default, source, rank - 2, edit.constant(places))
    spread = edit.call(aten.unsqueeze.default, spread, rank - 1)
    found = edit.call(aten.where.self, edit.constant(diagonal), spread, turned)
    return edit.permute(found, [order.index(a) for a in range(rank)])
