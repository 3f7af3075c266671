"""Writes ``copysign`` and ``signbit`` by comparisons.

Before → after::

    copysign(x, y)   →  |x| · s,  s = -1 where y has a minus, else 1
    signbit(x)       →  whether x has a minus

A zero has a sign too: that of -0 is in its reciprocal (``sign_bits``). A product keeps it, where a
selection of ONNX Runtime 1.32 makes 0 of -0. ONNX has neither operator.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import argument, dtype_of, is_call, operand
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling
from tokexport.graph_passes.torch_passes.spell_out.sign_bits import as_type, has_minus


class SpellOutSigns(NodePass):
    """Rewrites ``copysign`` and ``signbit``."""

    name: ClassVar[str] = "spell out signs"

    targets = (aten.copysign.Tensor, aten.copysign.Scalar, aten.signbit.default)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches every call."""
        return _sign_bit if is_call(node, aten.signbit.default) else _signed


def _sign_bit(edit: Editor, node: Node) -> Node:
    return has_minus(edit, operand(node))


def _signed(edit: Editor, node: Node) -> Node:
    size = edit.call(aten.abs.default, as_type(edit, operand(node), dtype_of(node)))
    sign = argument(node, "other")
    if isinstance(sign, Node):
        minus = as_type(edit, has_minus(edit, sign), dtype_of(node))
        turned = edit.call(aten.rsub.Scalar, edit.call(aten.mul.Scalar, minus, 2), 1)
        return edit.call(aten.mul.Tensor, size, turned)
    return edit.call(aten.neg.default, size) if math.copysign(1.0, sign) < 0 else size
