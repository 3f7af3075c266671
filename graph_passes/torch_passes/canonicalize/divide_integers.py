"""Divides whole numbers without leaving them.

Before → after, of integers::

    div(a, b, rounding_mode="floor")   →  floor_divide(a, b)
    div(a, b, rounding_mode="trunc")   →  q + (r ≠ 0 and (a < 0) ≠ (b < 0)),
                                          q = floor_divide(a, b), r = a - q · b
    floor_divide(9, b)                 →  floor_divide(full((), 9), b)

torch.div: both modes are exact for integers. torch.onnx translates them through float32, which has
24 bits.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    operand,
    value,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass

_DIVISIONS: Final = (aten.div.Tensor_mode, aten.div.Scalar_mode)


class DivideIntegers(TorchPass):
    """Spells out rounded quotients of integers."""

    name: ClassVar[str] = "divide integers"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many quotients it changed."""
        changed = 0
        for node in list(edit.graph.nodes):
            if is_call(node, aten.floor_divide.default) and not isinstance(node.args[0], Node):
                changed += _of_a_number(edit, node)
            if not is_call(node, *_DIVISIONS) or dtype_of(node).is_floating_point:
                continue
            with edit.before(node):
                new = _spelled(edit, operand(node), node.args[1], argument(node, "rounding_mode"))
            if dtype_of(new) == dtype_of(node):
                edit.replace(node, new)
                changed += 1
        return changed


def _of_a_number(edit: Editor, node: Node) -> int:
    """Puts a tensor of rank 0 in the place of a number that is divided."""
    options = {"dtype": dtype_of(node), "device": value(node).device, "pin_memory": False}
    with edit.before(node):
        top = edit.call(aten.full.default, [], node.args[0], **options)
        edit.replace(node, edit.call(aten.floor_divide.default, top, *node.args[1:]))
    return 1


def _spelled(edit: Editor, top: Node, bottom: Any, rounding: str) -> Node:
    floor = edit.call(aten.floor_divide.default, top, bottom)
    if rounding == "floor":
        return floor
    rest = edit.call(aten.sub.Tensor, top, edit.call(aten.mul.Tensor, floor, bottom))
    below = apart = edit.call(aten.lt.Scalar, top, 0)
    if isinstance(bottom, Node):
        apart = edit.call(aten.logical_xor.default, below, edit.call(aten.lt.Scalar, bottom, 0))
    elif bottom < 0:
        apart = edit.call(aten.logical_not.default, below)
    up = edit.call(aten.logical_and.default, edit.call(aten.ne.Scalar, rest, 0), apart)
    one = edit.call(aten._to_copy.default, up, dtype=dtype_of(floor))
    return edit.call(aten.add.Tensor, floor, one)
