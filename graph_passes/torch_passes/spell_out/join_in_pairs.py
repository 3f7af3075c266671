"""Adds up and multiplies whole numbers of any size pair by pair.

Before → after, along an axis of n numbers, until one is left::

    sum(x, d), prod(x, d)   →  x = cat([x[:h] + x[h : 2h], x[2h:]]),  h = n // 2; with · for prod

Whole numbers wrap around at the ends of their type. ONNX Runtime 1.32 adds and multiplies them in
float64 along an axis, which has 53 bits and saturates, and OpenVINO 2026.4 in float32; of two
numbers both are exact. What float32 holds stays as it is.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    normal_axis,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling
from tokexport.graph_passes.torch_passes.match.integer_bounds import fits_float32
from tokexport.graph_passes.torch_passes.spell_out.sign_bits import as_type

_SUMS: Final = (aten.sum.default, aten.sum.dim_IntList)
_PRODUCTS: Final = (aten.prod.default, aten.prod.dim_int)
_WHOLE: Final = (torch.int32, torch.int64)


class JoinInPairs(NodePass):
    """Turns sums and products of unbounded whole numbers into those of pairs."""

    name: ClassVar[str] = "join in pairs"

    targets = (*_SUMS, *_PRODUCTS)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches a sum or product of whole numbers that float32 may not hold."""
        if dtype_of(node) not in _WHOLE or 0 in shape_of(operand(node)) or fits_float32(node):
            return None
        return _joined


def _joined(edit: Editor, node: Node) -> Node:
    x = as_type(edit, operand(node), dtype_of(node))
    rank = len(shape_of(x))
    of_all = is_call(node, aten.sum.default, aten.prod.default)
    given: Any = None if of_all else argument(node, "dim")
    given = [given] if isinstance(given, int) else given
    axes = [normal_axis(each, rank) for each in given] if given else [*range(rank)]
    pair = aten.add.Tensor if is_call(node, *_SUMS) else aten.mul.Tensor
    for axis in axes:
        while (size := shape_of(x)[axis]) > 1:
            half = size // 2
            both = edit.cut(x, axis, 0, half), edit.cut(x, axis, half, 2 * half)
            rest = [edit.cut(x, axis, 2 * half, size)] if size % 2 else []
            x = edit.call(pair, *both)
            x = edit.call(aten.cat.default, [x, *rest], axis) if rest else x
    if shape_of(x) == shape_of(node):
        return x
    return edit.view(x, shape_of(node))
