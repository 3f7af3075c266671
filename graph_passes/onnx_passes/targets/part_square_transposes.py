"""Keeps OpenVINO from joining attention with a transpose of two axes of one size.

Before → after::

    Transpose(MatMul(p, v), (0, 2, 1, 3))        p·v (B, H, N, D), N = H
    →  Squeeze(Transpose(Unsqueeze(MatMul(p, v), 3), (0, 2, 1, 3, 4)), 3)

Where an image has as many tokens left as there are heads, the CPU plugin of OpenVINO 2025 and 2026
leaves this transpose out when it makes one kernel of the attention, and the result is wrong. The
axis of size one between the two keeps them apart; other sizes are right and stay.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement

_ORDER: Final = (0, 2, 1, 3)


class PartSquareTransposes(ir.passes.InPlacePass):
    """Puts an axis of size one into the transposes of square products."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        found = [node for node in model.graph.all_nodes() if _is_at_risk(node)]
        for node in found:
            new = Replacement(node)
            between = new.integers(3)
            wide = new.call("Unsqueeze", node.inputs[0], between)
            turned = new.call("Transpose", wide, perm=(*_ORDER, 4))
            new.put(new.call("Squeeze", turned, between))
        return ir.passes.PassResult(model, modified=bool(found))


def _is_at_risk(node: ir.Node) -> bool:
    """Tells whether a node turns a product of four axes whose middle two are of one size."""
    if node.domain != "" or node.op_type != "Transpose":
        return False
    if tuple(node.attributes.get_ints("perm", ())) != _ORDER:
        return False
    source = node.inputs[0]
    made = source.producer() if source is not None else None
    shape = node.outputs[0].shape
    return (
        made is not None
        and made.domain == ""
        and made.op_type == "MatMul"
        and shape is not None
        and shape[1] == shape[2]
    )
