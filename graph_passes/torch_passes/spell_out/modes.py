"""Writes the most frequent value as counts of equal ones.

Before → after, along the last axis::

    mode(x)   →  amin(where(count = amax(count), x, amax(x))),  count = sum(x[:, None] = x[None, :])
                 amax(where(x = value, arange, -1)) where the position is read

Of values that are as frequent PyTorch gives the smallest, and the last position of it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import argument, operand, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling


class SpellOutModes(NodePass):
    """Rewrites modes by comparisons of all pairs."""

    name: ClassVar[str] = "spell out modes"

    targets = (aten.mode.default,)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches every mode."""
        return _spelled


def _spelled(edit: Editor, node: Node) -> tuple[Node, Node]:
    x, keep = operand(node), bool(argument(node, "keepdim"))
    rank = len(shape_of(x))
    axis = int(argument(node, "dim")) % rank
    x = edit.call(aten.transpose.int, x, axis, rank - 1)
    size = shape_of(x)[-1]
    rows = edit.call(aten.unsqueeze.default, x, rank)
    columns = edit.call(aten.unsqueeze.default, x, rank - 1)
    count = edit.call(aten.sum.dim_IntList, edit.call(aten.eq.Tensor, rows, columns), [rank])
    most = edit.call(aten.amax.default, count, [rank - 1], True)
    frequent = edit.call(aten.eq.Tensor, count, most)
    largest = edit.call(aten.amax.default, x, [rank - 1], True)
    kept = edit.call(aten.where.self, frequent, x, largest)
    value = edit.call(aten.amin.default, kept, [rank - 1], True)
    places = edit.constant(torch.arange(size).expand(shape_of(x)).clone())
    nowhere = edit.constant(torch.full(shape_of(x), -1))
    here = edit.call(aten.where.self, edit.call(aten.eq.Tensor, x, value), places, nowhere)
    place = edit.call(aten.amax.default, here, [rank - 1], True)
    found = []
    for part in (value, place):
        part = edit.call(aten.transpose.int, part, axis, rank - 1)
        found.append(part if keep else edit.call(aten.squeeze.dim, part, axis))
    return found[0], found[1]
