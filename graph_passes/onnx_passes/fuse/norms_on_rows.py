"""Replaces layer normalisation of rows by the native kernel.

Before → after::

    LayerNormalization(x, w, b)      x (B, N, C), over the last axis   →   layer_norm(x, w, b)
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason


class NormsOnRows(NodePass):
    """Rewrites layer normalisation of float32 rows."""

    name = "norms on rows"
    comes_before = ("cosine merge norm",)
    op_types = ("LayerNormalization",)

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches the norm of rows (B, N, C) over their channels, with a scale and a bias."""
        x = node.inputs[0]
        shape = shape_of(x) if x is not None else None
        if x is None or x.dtype != ir.DataType.FLOAT:
            return Reason("it is not of float32")
        if len(node.inputs) != 3 or node.inputs[2] is None:
            return Reason("it has no bias")
        if shape is None or len(shape) != 3:
            return Reason(f"it is of {shape}, not of rows (B, N, C)")
        if (axis := node.attributes.get_int("axis", -1)) not in (-1, 2):
            return Reason(f"it begins at axis {axis}, not at the channels")
        if len(node.outputs) != 1:
            return Reason("its mean or its deviation is a result too")
        return partial(_rewrite, node)


def _rewrite(node: ir.Node) -> None:
    new = Replacement(node)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    new.put(new.call("layer_norm", *node.inputs, domain=DOMAIN, epsilon=epsilon))
