"""Writes pairwise distances with operators that every target has.

Before → after, with d[i, j] = a[i] - b[j]::

    cdist(a, b, p=2)   →  sqrt(Σ d²), or over matmul, as torch computes it for many rows
    cdist(a, b, p=1)   →  Σ |d|
    cdist(a, b, p=∞)   →  max |d|

torch.cdist: above 25 rows, unless ``compute_mode`` says otherwise, it takes the squares by matmul,
√(max(|a|² + |b|² - 2 a·b, 0)). Other p, and p = 0, are left alone.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import argument, is_call, operand, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass

#: Rows above which torch takes squared distances by matmul.
_FEW: Final = 25
_ALWAYS_BY_MATMUL: Final = 1
_NEVER_BY_MATMUL: Final = 2


class ExpandCdist(TorchPass):
    """Spells out cdist."""

    name: ClassVar[str] = "expand cdist"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many distances it changed."""
        changed = 0
        for node in list(edit.graph.nodes):
            if is_call(node, aten.cdist.default, aten._cdist_forward.default):
                with edit.before(node):
                    new = _spelled(edit, node)
                if new is not None:
                    edit.replace(node, new)
                    changed += 1
        return changed


def _spelled(edit: Editor, node: Node) -> Node | None:
    one, other, p = operand(node, "x1"), operand(node, "x2"), float(argument(node, "p"))
    if p not in (1.0, 2.0, math.inf):
        return None
    if p == 2.0 and _by_matmul(node, one, other):
        return _by_squares(edit, one, other)
    rows = edit.call(aten.unsqueeze.default, one, -2)
    columns = edit.call(aten.unsqueeze.default, other, -3)
    apart = edit.call(aten.sub.Tensor, rows, columns)
    if p == 2.0:
        squares = edit.call(aten.mul.Tensor, apart, apart)
        return edit.call(aten.sqrt.default, edit.call(aten.sum.dim_IntList, squares, [-1]))
    apart = edit.call(aten.abs.default, apart)
    if p == 1.0:
        return edit.call(aten.sum.dim_IntList, apart, [-1])
    return edit.call(aten.amax.default, apart, [-1])


def _by_matmul(node: Node, one: Node, other: Node) -> bool:
    mode = argument(node, "compute_mode")
    if mode == _ALWAYS_BY_MATMUL:
        return True
    many = max(shape_of(one)[-2], shape_of(other)[-2]) > _FEW
    return mode != _NEVER_BY_MATMUL and many and is_call(node, aten.cdist.default)


def _by_squares(edit: Editor, one: Node, other: Node) -> Node:
    """Inserts √(max(|a|² + |b|² - 2 a·b, 0))."""
    squares = []
    for part in (one, other):
        square = edit.call(aten.mul.Tensor, part, part)
        squares.append(edit.call(aten.sum.dim_IntList, square, [-1], True))
    turned = edit.call(aten.transpose.int, squares[1], -2, -1)
    columns = edit.call(aten.transpose.int, other, -2, -1)
    product = edit.call(aten.matmul.default, one, columns)
    total = edit.call(aten.add.Tensor, squares[0], turned)
    total = edit.call(aten.sub.Tensor, total, product, alpha=2)
    return edit.call(aten.sqrt.default, edit.call(aten.clamp.default, total, 0))
