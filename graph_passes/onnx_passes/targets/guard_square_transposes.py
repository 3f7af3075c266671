"""Keeps OpenVINO from joining attention with a transpose of two axes of one size.

Before → after::

    Transpose(MatMul(p, v), (0, 2, 1, 3))        p·v (B, H, N, D), N = H
    →  Squeeze(Transpose(Unsqueeze(MatMul(p, v), 3), (0, 2, 1, 3, 4)), 3)

Where an image has as many tokens left as there are heads, the CPU plugin of OpenVINO 2025 and 2026
leaves this transpose out when it makes one kernel of the attention, and the result is wrong. The
axis of size one between the two keeps them apart; other sizes are right and stay.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import made_by
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.pass_report import Reason

_ORDER: Final = (0, 2, 1, 3)


class GuardSquareTransposes(NodePass):
    """Puts an axis of size one into the transposes of square products."""

    name = "guard square transposes"
    op_types = ("Transpose",)
    in_subgraphs = True

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches a turned product of four axes whose middle two are of one size."""
        turns = tuple(node.attributes.get_ints("perm", ())) == _ORDER
        if not turns or made_by(node.inputs[0], "MatMul") is None:
            return None
        shape = node.outputs[0].shape
        if shape is None:
            return Reason("its shape is not known")
        return partial(_rewrite, node) if shape[1] == shape[2] else None


def _rewrite(node: ir.Node) -> None:
    new = Replacement(node)
    between = new.integers(3)
    wide = new.call("Unsqueeze", node.inputs[0], between)
    turned = new.call("Transpose", wide, perm=(*_ORDER, 4))
    new.put(new.call("Squeeze", turned, between))
