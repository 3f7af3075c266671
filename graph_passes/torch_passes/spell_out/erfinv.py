"""Writes the inverse of the error function as a polynomial in a logarithm.

Before → after, with w = -ln((1 - y) · (1 + y))::

    erfinv(y)   →  y · p(w - 5/2)    where w < 5
                   y · q(√w - 3)     beyond; ±∞ at ±1, and NaN outside of them

p and q are those of single precision in M. Giles, "Approximating the erfinv function", GPU
Computing Gems Jade Edition, 2012, chapter 10. ONNX does not have the operator, and the steps of
Newton that PyTorch takes magnify what runtimes round in erf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Final

from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import dtype_of, operand
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling
from tokexport.graph_passes.torch_passes.spell_out.sign_bits import as_type

#: From the highest power down.
_NEAR: Final = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
_FAR: Final = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)


class SpellOutErfinv(NodePass):
    """Rewrites ``erfinv`` by polynomials."""

    name: ClassVar[str] = "spell out erfinv"

    targets = (aten.erfinv.default, aten.special_erfinv.default)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches every call."""
        return _spelled


def _spelled(edit: Editor, node: Node) -> Node:
    y = as_type(edit, operand(node), dtype_of(node))
    size = edit.call(aten.abs.default, y)
    inside = edit.call(aten.lt.Scalar, size, 1)
    held = edit.call(aten.where.self, inside, y, edit.call(aten.zeros_like.default, y))
    left = edit.call(
        aten.mul.Tensor,
        edit.call(aten.rsub.Scalar, held, 1),
        edit.call(aten.add.Scalar, held, 1),
    )
    w = edit.call(aten.neg.default, edit.call(aten.log.default, left))
    root = edit.call(aten.sqrt.default, edit.call(aten.clamp_min.default, w, 0))
    factor = edit.call(
        aten.where.self,
        edit.call(aten.lt.Scalar, w, 5),
        _polynomial(edit, edit.call(aten.sub.Scalar, w, 2.5), _NEAR),
        _polynomial(edit, edit.call(aten.sub.Scalar, root, 3), _FAR),
    )
    found = edit.call(aten.mul.Tensor, held, factor)
    ends = edit.call(aten.mul.Scalar, y, math.inf)
    nowhere = edit.call(aten.full_like.default, y, math.nan)
    beyond = edit.call(aten.where.self, edit.call(aten.eq.Scalar, size, 1), ends, nowhere)
    return edit.call(aten.where.self, inside, found, beyond)


def _polynomial(edit: Editor, x: Node, coefficients: Sequence[float]) -> Node:
    """Inserts a polynomial whose coefficients are given from that of the highest power on."""
    first, *rest = coefficients
    found = edit.call(aten.full_like.default, x, first)
    for each in rest:
        found = edit.call(aten.add.Scalar, edit.call(aten.mul.Tensor, found, x), each)
    return found
