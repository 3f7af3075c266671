"""Writes running maxima, minima and products by those of pairs, each time twice as far apart.

Before → after, along an axis of n numbers, for s = 1, 2, 4, … below n::

    cummax(x).values    →  x = cat([x[:s], maximum(x[s:], x[:-s])])
    cummax(x).indices   →  the same of where(x >= values, arange, 0)
    cumprod(x)          →  the same with products

Of equal values PyTorch gives the last position. ONNX has none of these operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import (
    axis,
    dtype_of,
    is_call,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling


class SpellOutRunning(NodePass):
    """Rewrites ``cummax``, ``cummin`` and ``cumprod``."""

    name: ClassVar[str] = "spell out running extremes"

    targets = (aten.cummax.default, aten.cummin.default, aten.cumprod.default)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches extremes, and products of real numbers."""
        if not is_call(node, aten.cumprod.default):
            return _spelled
        return Reason("it is of complex numbers") if dtype_of(node).is_complex else _product


def _spelled(edit: Editor, node: Node) -> tuple[Node, Node]:
    x = operand(node)
    along = axis(node) if shape_of(x) else 0
    if not shape_of(x):
        return x, edit.constant(torch.zeros((), dtype=torch.int64))
    largest = is_call(node, aten.cummax.default)
    values = _running(edit, x, along, aten.maximum.default if largest else aten.minimum.default)
    reaches = edit.call(aten.ge.Tensor if largest else aten.le.Tensor, x, values)
    shape = shape_of(x)
    counted = torch.arange(shape[along]).reshape([-1] + [1] * (len(shape) - 1 - along))
    places = edit.constant(counted.expand(shape).clone())
    nowhere = edit.constant(torch.zeros(shape, dtype=torch.int64))
    here = edit.call(aten.where.self, reaches, places, nowhere)
    return values, _running(edit, here, along, aten.maximum.default)


def _product(edit: Editor, node: Node) -> Node:
    x = operand(node)
    if dtype_of(x) != dtype_of(node):
        x = edit.call(aten._to_copy.default, x, dtype=dtype_of(node))
    return _running(edit, x, axis(node), aten.mul.Tensor) if shape_of(x) else x


def running(edit: Editor, x: Node, along: int, joined: Callable[..., Node]) -> Node:
    """Inserts a running operation: each position of an axis combined with all before it.

    Args:
        edit: The graph.
        x: The numbers.
        along: The axis.
        joined: Inserts what becomes of two; it is called as ``joined(edit, one, other)``.
    """
    size, step = shape_of(x)[along], 1
    while step < size:
        first = edit.cut(x, along, 0, step)
        pair = edit.cut(x, along, step, size), edit.cut(x, along, 0, size - step)
        x = edit.call(aten.cat.default, [first, joined(edit, *pair)], along)
        step *= 2
    return x


def _running(edit: Editor, x: Node, along: int, extreme: Any) -> Node:
    """Inserts the running extreme, or product, of an axis."""
    return running(edit, x, along, lambda edit, *pair: edit.call(extreme, *pair))
