"""Writes joins of every name, circular padding and a missing bias in forms that runtimes take.

Before → after::

    hstack([x, y]), vstack, dstack, column_stack   →  cat of x and y with the axes that they lack
    pad(x, (a, b), mode="circular")                →  cat([x[-a:], x, x[:b]])
    conv3d(x, w)                                   →  conv3d(x, w, zeros)

The exporter writes the first as sequences and the last with a bias of no number; OpenVINO takes
neither, nor padding that goes around.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    operand,
    operands,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling


class SpellOutJoins(NodePass):
    """Turns stacks and circular padding into concatenations, and gives conv3d a bias."""

    name: ClassVar[str] = "spell out joins"

    targets = (
        *(aten.hstack.default, aten.vstack.default, aten.dstack.default, aten.column_stack.default),
        *(aten.pad.default, aten._pad_circular.default, aten.conv3d.default, aten.conv3d.padding),
    )

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches stacks, padding that goes around, and conv3d without a bias."""
        if is_call(node, *_LEAST):
            return _stacked
        if is_call(node, aten._pad_circular.default):
            return _padded
        if is_call(node, aten.pad.default):
            return _padded if argument(node, "mode") == "circular" else None
        return _with_bias if argument(node, "bias") is None else None


def _stacked(edit: Editor, node: Node) -> Node:
    parts = operands(node, "tensors")
    least, along = _LEAST[node.target]
    shaped = [edit.view(part, _with_axes(shape_of(part), least, node)) for part in parts]
    flat = is_call(node, aten.hstack.default) and len(shape_of(parts[0])) < 2
    return edit.call(aten.cat.default, shaped, 0 if flat else along)


def _with_axes(shape: tuple[int, ...], least: int, node: Node) -> tuple[int, ...]:
    """Returns a shape with the axes that ``atleast_1d`` and its like add."""
    if is_call(node, aten.column_stack.default):
        return shape if len(shape) > 1 else (*(shape or (1,)), 1)
    if len(shape) >= least:
        return shape
    if least < 3:
        return (*[1] * (least - len(shape)), *shape)
    return {0: (1, 1, 1), 1: (1, *shape, 1), 2: (*shape, 1)}[len(shape)]


_LEAST: Final[dict[object, tuple[int, int]]] = {
    aten.hstack.default: (1, 1),
    aten.vstack.default: (2, 0),
    aten.dstack.default: (3, 2),
    aten.column_stack.default: (2, 1),
}


def _padded(edit: Editor, node: Node) -> Node:
    x, pads = operand(node), argument(node, "pad")
    for place in range(0, len(pads), 2):
        axis = len(shape_of(x)) - 1 - place // 2
        before, behind = pads[place : place + 2]
        x = edit.cut(x, axis, max(-before, 0), shape_of(x)[axis] - max(-behind, 0))
        size = shape_of(x)[axis]
        parts = [x]
        if before > 0:
            parts.insert(0, edit.cut(x, axis, size - before, size))
        if behind > 0:
            parts.append(edit.cut(x, axis, 0, behind))
        x = edit.call(aten.cat.default, parts, axis) if len(parts) > 1 else x
    return x


def _with_bias(edit: Editor, node: Node) -> Node:
    weight = operand(node, "weight")
    zeros = edit.constant(torch.zeros(shape_of(weight)[0], dtype=dtype_of(weight)))
    rest = {name: value for name, value in node.kwargs.items() if name != "bias"}
    return edit.call(node.target, *node.args[:2], zeros, *node.args[3:], **rest)
