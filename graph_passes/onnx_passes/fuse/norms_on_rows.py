"""Lets the project's kernel normalise rows.

Before → after::

    LayerNormalization(x, w, b)      x (B, N, C), over the last axis   →   layer_norm(x, w, b)
"""

from __future__ import annotations

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.ops.onnx_functions import DOMAIN


class NormsOnRows(ir.passes.InPlacePass):
    """Rewrites layer normalisation of float32 rows."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        found = [node for node in model.graph if _is_on_rows(node)]
        for node in found:
            new = Replacement(node)
            epsilon = node.attributes.get_float("epsilon", 1e-5)
            new.put(new.call("layer_norm", *node.inputs, domain=DOMAIN, epsilon=epsilon))
        return ir.passes.PassResult(model, modified=bool(found))


def _is_on_rows(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type != "LayerNormalization" or len(node.inputs) != 3:
        return False
    x = node.inputs[0]
    shape = shape_of(x) if x is not None else None
    return (
        x is not None
        and x.dtype == ir.DataType.FLOAT
        and node.inputs[2] is not None
        and shape is not None
        and len(shape) == 3
        and node.attributes.get_int("axis", -1) in (-1, 2)
        and len(node.outputs) == 1
    )
