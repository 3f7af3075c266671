"""Joins each product with constant weights and what follows it, and packs the weights.

Before → after, x (B, N, K), w (K, C) and b (C) constant::

    MatMul(x, w) + b                     →  linear(x, panels, b)
    Gelu(MatMul(x, w) + b)               →  linear_gelu(x, panels, b)
    y + (MatMul(x, w) + b)               →  linear_add(x, panels, b, y)

A scale of each channel behind it (LayerScale) goes into weights and bias. ``panels`` (⌈C / 32⌉, K,
32) is the order the kernel reads the weights in, so that it needs no copy of its own of them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.epilogues import Floats, epilogue
from tokexport.graph_passes.onnx_passes.graph.initializers import add_initializer
from tokexport.graph_passes.onnx_passes.graph.linears import as_linear
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.ops.fused_functions import PANEL
from tokexport.graph_passes.ops.onnx_functions import DOMAIN


class PackLinears(ir.passes.InPlacePass):
    """Rewrites products of float32 rows with constant weights."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        found = [node for node in model.graph if _is_linear(node)]
        packed: dict[ir.Value, ir.Value] = {}
        for node in found:
            _rewrite(node, model.graph, packed)
        return ir.passes.PassResult(model, modified=bool(found))


def packed_panels(weights: Floats) -> Floats:
    """Packs weights (K, C) into panels (⌈C / 32⌉, K, 32), with zeros behind the last column."""
    depth, columns = weights.shape
    padded = np.zeros((depth, -(-columns // PANEL) * PANEL), np.float32)
    padded[:, :columns] = weights
    return np.ascontiguousarray(padded.reshape(depth, -1, PANEL).transpose(1, 0, 2))


def _is_linear(node: ir.Node) -> bool:
    linear = as_linear(node)
    shape = shape_of(linear.rows) if linear is not None else None
    return node.op_type == "MatMul" and shape is not None and len(shape) == 3


def _rewrite(node: ir.Node, graph: ir.Graph, packed: dict[ir.Value, ir.Value]) -> None:
    linear = as_linear(node)
    assert linear is not None
    x, w, weights = linear.rows, linear.weight, linear.matrix()
    behind = epilogue(node, weights.shape[1])
    name = f"{w.name}.{behind.last.name}"
    if behind.scale is not None:
        scaled = packed_panels(weights * behind.scale)
        panels = add_initializer(graph, f"{name}.panels", scaled)
    elif w in packed:
        panels = packed[w]
    else:
        panels = packed[w] = add_initializer(graph, f"{w.name}.panels", packed_panels(weights))
    bias = behind.bias_value
    if bias is None:
        bias = add_initializer(graph, f"{name}.bias", behind.bias)
    new = Replacement(behind.last)
    new.put(new.call(f"linear{behind.suffix}", x, panels, bias, *behind.added, domain=DOMAIN))
