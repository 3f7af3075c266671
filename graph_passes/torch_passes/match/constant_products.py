"""Inserts products with constant matrices along one axis of a tensor."""

from __future__ import annotations

from math import prod

from torch import Tensor
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import dtype_of, shape_of
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
