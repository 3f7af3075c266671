"""Writes differences of neighbours, and sums that leave NaN out, by simpler calls.

Before → after::

    diff(x, n, d, before, behind)   →  x = cat([before, x, behind]); n times x[1:] - x[:-1]
    diff of truth values            →  x[1:] ≠ x[:-1]
    nansum(x, d)                    →  sum(where(isnan(x), 0, x), d), of whole numbers sum(x, d)
    nanmean(x, d)                   →  the same, divided by how many are no NaN

So what stands for narrow whole numbers holds here too. ONNX has none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    dtype_of,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling
from tokexport.graph_passes.torch_passes.spell_out.sign_bits import as_type


class SpellOutDifferences(NodePass):
    """Rewrites ``diff``, ``nansum`` and ``nanmean``."""

    name: ClassVar[str] = "spell out differences"
    comes_before: ClassVar[tuple[str, ...]] = ("promote types",)

    targets = (aten.diff.default, aten.nansum.default, aten.nanmean.default)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches every call."""
        return _RULES[node.target]


def _differences(edit: Editor, node: Node) -> Node:
    along = axis(node)
    ends = (argument(node, "prepend"), operand(node), argument(node, "append"))
    parts = [part for part in ends if isinstance(part, Node)]
    x = edit.call(aten.cat.default, parts, along) if len(parts) > 1 else parts[0]
    for _ in range(argument(node, "n")):
        size = shape_of(x)[along]
        later = edit.call(aten.slice.Tensor, x, along, 1, size)
        earlier = edit.call(aten.slice.Tensor, x, along, 0, max(size - 1, 0))
        truths = dtype_of(x) == torch.bool
        x = edit.call(aten.ne.Tensor if truths else aten.sub.Tensor, later, earlier)
    return x


def _sum(edit: Editor, node: Node) -> Node:
    x, held = _held(edit, operand(node))
    return _over(edit, node, x if held is None else _zero_where(edit, held, x))


def _mean(edit: Editor, node: Node) -> Node:
    x, held = _held(edit, operand(node))
    assert held is not None  # PyTorch takes floats alone
    total = _over(edit, node, _zero_where(edit, held, x))
    count = _over(edit, node, as_type(edit, held, dtype_of(node)))
    return edit.call(aten.div.Tensor, total, count)


def _held(edit: Editor, x: Node) -> tuple[Node, Node | None]:
    """Returns numbers, and which of them are no NaN; None where all are whole."""
    if not dtype_of(x).is_floating_point:
        return x, None
    return x, edit.call(aten.logical_not.default, edit.call(aten.isnan.default, x))


def _zero_where(edit: Editor, held: Node, x: Node) -> Node:
    zero = edit.constant(torch.zeros((), dtype=dtype_of(x)))
    return edit.call(aten.where.self, held, x, zero)


def _over(edit: Editor, node: Node, x: Node) -> Node:
    """Inserts a sum over the axes that a call names, in the type of its result."""
    dims: Any = argument(node, "dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(len(shape_of(x))))
    keeps = bool(argument(node, "keepdim"))
    return edit.call(aten.sum.dim_IntList, x, dims, keeps, dtype=dtype_of(node))


_RULES: Final[dict[object, Callable[[Editor, Node], Node]]] = {
    aten.diff.default: _differences,
    aten.nansum.default: _sum,
    aten.nanmean.default: _mean,
}
