"""Fuses each product with constant weights with its epilogue, and packs the weights.

Before → after, x (B, N, K), w (K, C) and b (C) constant::

    MatMul(x, w) + b                     →  linear(x, panels, b)
    Gelu(MatMul(x, w) + b)               →  linear_gelu(x, panels, b)
    y + (MatMul(x, w) + b)               →  linear_add(x, panels, b, y)

A scale of each channel behind it (LayerScale) goes into weights and bias. ``panels`` (⌈C / 32⌉, K,
32) is the order the kernel reads the weights in, so that it needs no copy of its own of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.epilogues import Floats, epilogue
from tokexport.graph_passes.onnx_passes.graph.initializers import add_initializer
from tokexport.graph_passes.onnx_passes.graph.linears import Linear, as_linear
from tokexport.graph_passes.onnx_passes.graph.node_pass import Rewrite, SharingNodePass
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.ops.fused_functions import PANEL
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason


@dataclass(frozen=True)
class Panels:
    """The weights that were packed.

    Attributes:
        graph: The graph that holds them.
        of: The panels by the weights that they were packed from.
    """

    graph: ir.Graph
    of: dict[ir.Value, ir.Value] = field(default_factory=dict)


class PackLinears(SharingNodePass[Panels]):
    """Rewrites products of float32 rows with constant weights."""

    name = "pack linears"
    op_types = ("MatMul",)

    def shared(self, graph: ir.Graph) -> Panels:
        """Returns the panels of weights that several products share."""
        return Panels(graph)

    def match(self, node: ir.Node, shared: Panels) -> Rewrite | Reason | None:
        """Matches a product of rows (B, N, K) with a constant matrix."""
        linear = as_linear(node)
        if linear is None:
            return None  # of two computed matrices, or not of float32
        shape = shape_of(linear.rows)
        if shape is None or len(shape) != 3:
            return Reason(f"it multiplies {shape}, not rows (B, N, K)")
        return partial(_rewrite, linear, shared)


def packed_panels(weights: Floats) -> Floats:
    """Packs weights (K, C) into panels (⌈C / 32⌉, K, 32), with zeros behind the last column."""
    depth, columns = weights.shape
    padded = np.zeros((depth, -(-columns // PANEL) * PANEL), np.float32)
    padded[:, :columns] = weights
    return np.ascontiguousarray(padded.reshape(depth, -1, PANEL).transpose(1, 0, 2))


def _rewrite(linear: Linear, packed: Panels) -> None:
    x, w, weights, graph = linear.rows, linear.weight, linear.matrix(), packed.graph
    behind = epilogue(linear.node, weights.shape[1])
    name = f"{w.name}.{behind.last.name}"
    if behind.scale is not None:
        scaled = packed_panels(weights * behind.scale)
        panels = add_initializer(graph, f"{name}.panels", scaled)
    elif w in packed.of:
        panels = packed.of[w]
    else:
        panels = add_initializer(graph, f"{w.name}.panels", packed_panels(weights))
        packed.of[w] = panels
    bias = behind.bias_value
    if bias is None:
        bias = add_initializer(graph, f"{name}.bias", behind.bias)
    new = Replacement(behind.last)
    new.put(new.call(f"linear{behind.suffix}", x, panels, bias, *behind.added, domain=DOMAIN))
