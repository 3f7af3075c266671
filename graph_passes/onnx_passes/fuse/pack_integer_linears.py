"""Fuses each product of 8-bit integers with its epilogue, and packs the weights.

Before → after, x (B, N, K), w (K, C) int8 and t (C) constant::

    q, s, z = DynamicQuantizeLinear(x)
    Cast(MatMulInteger(q, w, z)) · (s · t) + b           →  integer_linear(x, panels, t, b)

and with a GELU or a residual behind it ``integer_linear_gelu`` or ``integer_linear_add``; a scale
of each channel goes into t and b. ``panels`` (⌈C / 32⌉, ⌈K / 4⌉, 32, 4) has the four bytes of a
column together that the processor multiplies at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.fuse.pack_linears import Panels
from tokexport.graph_passes.onnx_passes.graph.epilogues import Floats, epilogue, floats_of
from tokexport.graph_passes.onnx_passes.graph.initializers import add_initializer
from tokexport.graph_passes.onnx_passes.graph.node_pass import Rewrite, SharingNodePass
from tokexport.graph_passes.onnx_passes.graph.producers import made_by, maker_of, only_reader
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.ops.fused_functions import PANEL
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason

Integers = np.ndarray[Any, np.dtype[np.int8]]
_FOUR = 4


@dataclass(frozen=True)
class _Product:
    """A product of integers, turned back into floats by ``node``."""

    node: ir.Node
    quantises: ir.Node  # whose input is another value once what makes that is rewritten
    weights: ir.Value
    scales: ir.Value


class PackIntegerLinears(SharingNodePass[Panels]):
    """Rewrites the products that ``QuantiseDynamically`` made."""

    name = "pack integer linears"
    op_types = ("MatMulInteger",)

    def shared(self, graph: ir.Graph) -> Panels:
        """Returns the panels of weights that several products share."""
        return Panels(graph)

    def match(self, node: ir.Node, shared: Panels) -> Rewrite | Reason | None:
        """Matches a product of bytes that is turned back into floats."""
        found = _product(node)
        return found if isinstance(found, Reason) else partial(_rewrite, found, shared)


def packed_bytes(weights: Integers) -> Integers:
    """Packs weights (K, C) into panels (⌈C / 32⌉, ⌈K / 4⌉, 32, 4), with zeros behind the last."""
    depth, columns = weights.shape
    padded = np.zeros((-(-depth // _FOUR) * _FOUR, -(-columns // PANEL) * PANEL), np.int8)
    padded[:depth, :columns] = weights
    groups = padded.reshape(-1, _FOUR, padded.shape[1] // PANEL, PANEL)
    return np.ascontiguousarray(groups.transpose(2, 0, 3, 1))


def _product(node: ir.Node) -> _Product | Reason:
    """Reads ``Cast(MatMulInteger(q, w, z)) · (s · t)`` from its product."""
    if len(node.inputs) != 3:
        return Reason("it has a zero point of its weights, or none")
    integers, weights, zero = node.inputs
    first = made_by(integers, "DynamicQuantizeLinear")
    if first is None or first.outputs[2] is not zero:
        return Reason(f"its bytes come from {maker_of(integers)}, not from DynamicQuantizeLinear")
    cast = only_reader(node.outputs[0])
    last = only_reader(cast.outputs[0]) if cast is not None and cast.op_type == "Cast" else None
    if cast is None or last is None or last.op_type != "Mul":
        return Reason("its sums do not become floats that are multiplied by a scale, and no more")
    factor = made_by(last.inputs[1], "Mul")
    if last.inputs[0] is not cast.outputs[0] or factor is None:
        return Reason("its sums do not become floats that are multiplied by a scale, and no more")
    rows, scales = first.inputs[0], factor.inputs[1]
    if factor.inputs[0] is not first.outputs[1] or scales is None or floats_of(scales) is None:
        return Reason("its scale is not that of its rows, times those of its weights")
    if rows is None or len(shape_of(rows) or ()) != 3:
        return Reason(f"it multiplies {rows and shape_of(rows)}, not rows (B, N, K)")
    if weights is None or ir.convenience.get_const_tensor(weights) is None:
        return Reason("its weights are computed")
    return _Product(last, first, weights, scales)


def _rewrite(product: _Product, packed: Panels) -> None:
    graph = packed.graph
    scales, integers = floats_of(product.scales), _integers_of(product.weights)
    assert scales is not None
    behind = epilogue(product.node, integers.shape[1])
    name = f"{product.weights.name}.{behind.last.name}"
    if product.weights not in packed.of:
        panels = add_initializer(graph, f"{product.weights.name}.panels", packed_bytes(integers))
        packed.of[product.weights] = panels
    scale = product.scales
    if behind.scale is not None:
        scaled: Floats = scales * behind.scale
        scale = add_initializer(graph, f"{name}.scale", scaled)
    bias = behind.bias_value
    if bias is None:
        bias = add_initializer(graph, f"{name}.bias", behind.bias)
    rows = product.quantises.inputs[0]
    operands = rows, packed.of[product.weights], scale, bias, *behind.added
    new = Replacement(behind.last)
    new.put(new.call(f"integer_linear{behind.suffix}", *operands, domain=DOMAIN))


def _integers_of(value: ir.Value) -> Integers:
    constant = ir.convenience.get_const_tensor(value)
    assert constant is not None
    array: Integers = constant.numpy()
    return array
