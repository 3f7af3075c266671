"""Computes, while compiling, the values of a graph that depend on no input or weight.

``multiplied`` inserts products with constant matrices along one axis of a tensor.
"""

from __future__ import annotations

from math import prod
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from tokexport.graph_passes.torch_passes.graph.calls import (
    constant_of,
    dtype_of,
    is_call,
    is_tensor,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten


def multiplied(edit: Editor, x: Node, axis: int, matrix: Tensor) -> Node:
    """Inserts the product of a constant matrix (K, N) and a real tensor along an axis of N.

    It stays in float32 whatever the precision.
    """
    shape = shape_of(x)
    matrix = matrix.to(dtype_of(x))
    if axis == len(shape) - 1:
        turned = edit.constant(matrix.T.contiguous(), wide=True)
        return edit.call(aten.matmul.default, x, turned)
    flat = edit.view(x, (prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])))
    found = edit.call(aten.matmul.default, edit.constant(matrix, wide=True), flat)
    return edit.view(found, (*shape[:axis], matrix.shape[0], *shape[axis + 1 :]))


#: Elements above which a value is not computed while compiling.
LARGEST: Final = 1 << 24


#: Calls that take from a tensor no more than its shape and type.
_LIKE: Final = (
    *(aten.zeros_like.default, aten.ones_like.default, aten.full_like.default),
    *(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default),
)


def reads_only_shape(node: Node) -> bool:
    """Returns whether a call's result does not depend on the values of its operand."""
    return is_call(node, *_LIKE)


class ConstantValues:
    """The constant values of one graph, each computed once."""

    def __init__(self) -> None:
        self._known: dict[Node, Tensor | None] = {}

    def of(self, node: object) -> Tensor | None:
        """Returns the value of a node, or None where an input or a weight reaches it."""
        if not isinstance(node, Node):
            return None
        if node not in self._known:
            self._known[node] = None
            self._known[node] = self._computed(node)
        return self._known[node]

    def _computed(self, node: Node) -> Tensor | None:
        if not is_tensor(node) or prod(shape_of(node)) > LARGEST:
            return None
        if node.op == "placeholder":
            return constant_of(node)
        if node.op != "call_function" or getattr(node.target, "namespace", "") != "aten":
            return None
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return None
        values: dict[Node, Tensor | None]
        if reads_only_shape(node):
            values = {
                one: torch.zeros(shape_of(one), dtype=dtype_of(one)) for one in node.all_input_nodes
            }
        else:
            values = {operand: self.of(operand) for operand in node.all_input_nodes}
        if any(value is None for value in values.values()):
            return None
        args, kwargs = map_arg((node.args, node.kwargs), lambda operand: values[operand])
        target: Any = node.target
        with torch.no_grad():
            result = target(*args, **kwargs)
        return result if isinstance(result, Tensor) else None
