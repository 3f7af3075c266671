"""Writes the length of a right triangle's long side without squaring a large number.

Before → after, with m the larger and n the smaller of |x| and |y|::

    hypot(x, y)   →  m · √(1 + (n / m)²),  0 where m is 0, ∞ where a side is

As in C, ∞ beside NaN is ∞. ONNX does not have the operator.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import dtype_of, operand
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling
from tokexport.graph_passes.torch_passes.spell_out.sign_bits import as_type


class SpellOutHypot(NodePass):
    """Rewrites ``hypot`` by a quotient and a root."""

    name: ClassVar[str] = "spell out hypot"

    targets = (aten.hypot.default,)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches every call."""
        return _spelled


def _spelled(edit: Editor, node: Node) -> Node:
    one, other = (
        edit.call(aten.abs.default, as_type(edit, operand(node, name), dtype_of(node)))
        for name in ("self", "other")
    )
    larger = edit.call(aten.maximum.default, one, other)
    smaller = edit.call(aten.minimum.default, one, other)
    unit = edit.call(aten.ones_like.default, larger)
    divisor = edit.call(aten.where.self, edit.call(aten.eq.Scalar, larger, 0), unit, larger)
    ratio = edit.call(aten.div.Tensor, smaller, divisor)
    square = edit.call(aten.add.Scalar, edit.call(aten.mul.Tensor, ratio, ratio), 1)
    found = edit.call(aten.mul.Tensor, larger, edit.call(aten.sqrt.default, square))
    total = edit.call(aten.add.Tensor, one, other)  # NaN where a side is, whatever a maximum says
    found = edit.call(aten.where.self, edit.call(aten.isnan.default, total), total, found)
    endless = edit.call(
        aten.logical_or.default,
        edit.call(aten.eq.Scalar, one, math.inf),
        edit.call(aten.eq.Scalar, other, math.inf),
    )
    most = edit.call(aten.full_like.default, found, math.inf)
    return edit.call(aten.where.self, endless, most, found)
