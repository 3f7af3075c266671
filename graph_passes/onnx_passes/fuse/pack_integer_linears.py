"""Joins each product of 8-bit integers and what follows it, and packs the weights.

Before → after, x (B, N, K), w (K, C) int8 and t (C) constant::

    q, s, z = DynamicQuantizeLinear(x)
    Cast(MatMulInteger(q, w, z)) · (s · t) + b           →  integer_linear(x, panels, t, b)

and with a GELU or a residual behind it ``integer_linear_gelu`` or ``integer_linear_add``; a scale
of each channel goes into t and b. ``panels`` (⌈C / 32⌉, ⌈K / 4⌉, 32, 4) has the four bytes of a
column together that the processor multiplies at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.epilogues import Floats, epilogue, floats_of
from tokexport.graph_passes.onnx_passes.graph.initializers import add_initializer
from tokexport.graph_passes.onnx_passes.graph.neighbours import made_by, only_reader
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.ops.fused_functions import PANEL
from tokexport.graph_passes.ops.onnx_functions import DOMAIN

Integers = np.ndarray[Any, np.dtype[np.int8]]
_FOUR = 4


@dataclass(frozen=True)
class _Product:
    """A product of integers, turned back into floats by ``node``."""

    node: ir.Node
    quantises: ir.Node  # whose input is another value once what makes that is rewritten
    weights: ir.Value
    scales: ir.Value


class PackIntegerLinears(ir.passes.InPlacePass):
    """Rewrites what ``QuantiseDynamically`` made."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        found = [one for node in model.graph if (one := _product(node)) is not None]
        packed: dict[ir.Value, ir.Value] = {}
        for product in found:
            _rewrite(product, model.graph, packed)
        return ir.passes.PassResult(model, modified=bool(found))


def packed_bytes(weights: Integers) -> Integers:
    """Packs weights (K, C) into panels (⌈C / 32⌉, ⌈K / 4⌉, 32, 4), with zeros behind the last."""
    depth, columns = weights.shape
    padded = np.zeros((-(-depth // _FOUR) * _FOUR, -(-columns // PANEL) * PANEL), np.int8)
    padded[:depth, :columns] = weights
    groups = padded.reshape(-1, _FOUR, padded.shape[1] // PANEL, PANEL)
    return np.ascontiguousarray(groups.transpose(2, 0, 3, 1))


def _product(node: ir.Node) -> _Product | None:
    """Reads ``Cast(MatMulInteger(q, w, z)) · (s · t)`` from its last node."""
    if node.domain != "" or node.op_type != "MatMulInteger" or len(node.inputs) != _FOUR - 1:
        return None
    integers, weights, zero = node.inputs
    first = made_by(integers, "DynamicQuantizeLinear")
    cast = only_reader(node.outputs[0])
    if first is None or first.outputs[2] is not zero or cast is None or cast.op_type != "Cast":
        return None
    last = only_reader(cast.outputs[0])
    if last is None or last.op_type != "Mul" or last.inputs[0] is not cast.outputs[0]:
        return None
    factor = made_by(last.inputs[1], "Mul")
    if factor is None or factor.inputs[0] is not first.outputs[1]:
        return None
    rows, scales = first.inputs[0], factor.inputs[1]
    if rows is None or weights is None or scales is None or len(shape_of(rows) or ()) != 3:
        return None
    if ir.convenience.get_const_tensor(weights) is None or floats_of(scales) is None:
        return None
    return _Product(last, first, weights, scales)


def _rewrite(product: _Product, graph: ir.Graph, packed: dict[ir.Value, ir.Value]) -> None:
    scales, integers = floats_of(product.scales), _integers_of(product.weights)
    assert scales is not None
    behind = epilogue(product.node, integers.shape[1])
    name = f"{product.weights.name}.{behind.last.name}"
    if product.weights not in packed:
        panels = packed_bytes(integers)
        packed[product.weights] = add_initializer(graph, f"{product.weights.name}.panels", panels)
    scale = product.scales
    if behind.scale is not None:
        scaled: Floats = scales * behind.scale
        scale = add_initializer(graph, f"{name}.scale", scaled)
    bias = behind.bias_value
    if bias is None:
        bias = add_initializer(graph, f"{name}.bias", behind.bias)
    rows = product.quantises.inputs[0]
    operands = rows, packed[product.weights], scale, bias, *behind.added
    new = Replacement(behind.last)
    new.put(new.call(f"integer_linear{behind.suffix}", *operands, domain=DOMAIN))


def _integers_of(value: ir.Value) -> Integers:
    constant = ir.convenience.get_const_tensor(value)
    assert constant is not None
    array: Integers = constant.numpy()
    return array
