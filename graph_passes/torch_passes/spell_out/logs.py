"""Writes logarithms of sums of powers around the largest of them, so that none overflows.

Before → after, with d = 0 where x = y, else x - y::

    logaddexp(x, y)    →  max(x, y) + log1p(exp(-|d|))
    logaddexp2(x, y)   →  max(x, y) + log1p(2^-|d|) / ln 2
    logcumsumexp(x)    →  x = cat([x[:s], logaddexp(x[s:], x[:-s])]) for s = 1, 2, 4, … below n

torch's exporter takes the exponentials as they are, of which that of 89 is infinite already, or
around the largest of the whole row, below which all that lies 104 under it is lost.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import (
    axis,
    dtype_of,
    is_call,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling
from tokexport.graph_passes.torch_passes.spell_out.running import running
from tokexport.graph_passes.torch_passes.spell_out.sign_bits import as_type


class SpellOutLogs(NodePass):
    """Rewrites ``logaddexp``, ``logaddexp2`` and ``logcumsumexp``."""

    name: ClassVar[str] = "spell out logs"

    targets = (aten.logaddexp.default, aten.logaddexp2.default, aten.logcumsumexp.default)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches every call."""
        return _row if is_call(node, aten.logcumsumexp.default) else _pair


def _pair(edit: Editor, node: Node) -> Node:
    x, y = (as_type(edit, operand(node, name), dtype_of(node)) for name in ("self", "other"))
    return _joined(edit, x, y, binary=is_call(node, aten.logaddexp2.default))


def _row(edit: Editor, node: Node) -> Node:
    x = operand(node)
    return running(edit, x, axis(node), _joined) if shape_of(x) else x


def _joined(edit: Editor, x: Node, y: Node, binary: bool = False) -> Node:
    apart = edit.call(aten.sub.Tensor, x, y)
    zero = edit.call(aten.zeros_like.default, apart)
    apart = edit.call(aten.where.self, edit.call(aten.eq.Tensor, x, y), zero, apart)
    below = edit.call(aten.neg.default, edit.call(aten.abs.default, apart))
    power = edit.call(aten.exp2.default if binary else aten.exp.default, below)
    more = edit.call(aten.log1p.default, power)
    if binary:
        more = edit.call(aten.mul.Scalar, more, 1.0 / math.log(2.0))
    return edit.call(aten.add.Tensor, edit.call(aten.maximum.default, x, y), more)
