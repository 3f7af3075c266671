"""Corrects quotients and remainders of integers, which OpenVINO computes in float32.

Before → after, of int32 and int64::

    Div(a, b)           →  q - s · w     q = Div(a, b) + Div(a - Div(a, b) · b, b),  r = a - q · b,
                                         w = 1 where r ≠ 0 and (r < 0) ≠ (a < 0), else 0,
                                         s = 1 where (a < 0) = (b < 0), else -1
    Mod(a, b, fmod=1)   →  r + s · w · b
    Mod(a, b)           →  t + b where t = Mod(a, b, fmod=1) ≠ 0 and (t < 0) ≠ (b < 0), else t

The CPU plugin of OpenVINO 2026.4 divides integers as float32, which has 24 bits, and multiplies and
subtracts them exactly in 32. A quotient is off by a share of itself, so what is left of the
dividend is small; its own quotient is off by one at most, as the sign of the rest shows.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.pass_report import Reason

_WHOLE = {ir.DataType.INT32: np.int32, ir.DataType.INT64: np.int64}


class CorrectIntegerDivision(NodePass):
    """Replaces Div and Mod of integers by exact operators."""

    name = "correct integer division"
    op_types = ("Div", "Mod")
    in_subgraphs = True

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches a quotient or a remainder of int32 or int64."""
        types = [value.dtype for value in (*node.inputs, *node.outputs) if value is not None]
        known = [each for each in types if each is not None]
        if not known:
            return Reason("the type of its numbers is not known")
        return partial(_rewrite, node) if known[0] in _WHOLE else None


def _rewrite(node: ir.Node) -> None:
    new = Replacement(node)
    top, bottom = node.inputs[0], node.inputs[1]
    assert top is not None
    assert bottom is not None
    kind = next(v.dtype for v in (*node.inputs, *node.outputs) if v is not None and v.dtype)
    zero = new.constant(np.zeros((), _WHOLE[kind]))

    def below(value: ir.Value) -> ir.Value:
        return new.call("Less", value, zero)

    def differ(one: ir.Value, other: ir.Value) -> ir.Value:
        return new.call("Xor", one, other)

    def rest_of(quotient: ir.Value) -> ir.Value:
        return new.call("Sub", top, new.call("Mul", quotient, bottom))

    def is_not_zero(value: ir.Value) -> ir.Value:
        return new.call("Not", new.call("Equal", value, zero))

    near = new.call("Div", top, bottom)
    quotient = new.call("Add", near, new.call("Div", rest_of(near), bottom))
    rest = rest_of(quotient)
    wrong = new.call("And", is_not_zero(rest), differ(below(rest), below(top)))
    opposite = differ(below(top), below(bottom))
    if node.op_type == "Div":
        step = new.constant(np.ones((), _WHOLE[kind]))
        down = new.call(
            "Where", opposite, new.call("Add", quotient, step), new.call("Sub", quotient, step)
        )
        new.put(new.call("Where", wrong, down, quotient))
        return
    up = new.call("Where", opposite, new.call("Sub", rest, bottom), new.call("Add", rest, bottom))
    rest = new.call("Where", wrong, up, rest)
    if not node.attributes.get_int("fmod", 0):
        other = new.call("And", is_not_zero(rest), differ(below(rest), below(bottom)))
        rest = new.call("Where", other, new.call("Add", rest, bottom), rest)
    new.put(rest)
