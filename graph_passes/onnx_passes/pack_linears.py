"""Joins each product with constant weights and what follows it, and packs the weights.

Before → after, x (B, N, K), w (K, C) and b (C) constant::

    MatMul(x, w) + b                     →  linear(x, panels, b)
    Gelu(MatMul(x, w) + b)               →  linear_gelu(x, panels, b)
    y + (MatMul(x, w) + b)               →  linear_add(x, panels, b, y)

A scale of each channel behind it (LayerScale) goes into weights and bias. ``panels`` (⌈C / 32⌉, K,
32) is the order the kernel reads the weights in, so that it needs no copy of its own of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.fused_functions import PANEL
from tokexport.graph_passes.onnx_functions import DOMAIN
from tokexport.graph_passes.onnx_passes.neighbours import only_reader
from tokexport.graph_passes.onnx_passes.replacement import Replacement
from tokexport.graph_passes.onnx_passes.strided_views import shape_of

Floats = np.ndarray[Any, np.dtype[np.float32]]


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
    if node.domain != "" or node.op_type != "MatMul":
        return False
    x, w = node.inputs
    shape = shape_of(x) if x is not None else None
    return (
        w is not None
        and _constant(w) is not None
        and w.dtype == ir.DataType.FLOAT
        and len(shape_of(w) or ()) == 2
        and shape is not None
        and len(shape) == 3
    )


def _rewrite(node: ir.Node, graph: ir.Graph, packed: dict[ir.Value, ir.Value]) -> None:
    x, w = node.inputs
    assert x is not None
    assert w is not None
    weights = _constant(w)
    assert weights is not None
    columns = weights.shape[1]
    last, bias = node, np.zeros(columns, np.float32)
    bias_value = None
    if (found := _follows(last, "Add", columns)) is not None:
        last, bias_value, bias = found
    scale = None
    if (found := _follows(last, "Mul", columns)) is not None:
        last, _, scale = found
        bias_value, bias = None, bias * scale
    name, further = "linear", []
    gelu = only_reader(last.outputs[0])
    residual = _residual(last)
    if gelu is not None and gelu.op_type == "Gelu" and _is_exact(gelu):
        name, last = "linear_gelu", gelu
    elif residual is not None:
        name, (last, added) = "linear_add", residual
        further = [added]
    if scale is not None:
        panels = _initializer(graph, f"{w.name}.{last.name}.panels", packed_panels(weights * scale))
    elif w in packed:
        panels = packed[w]
    else:
        panels = _initializer(graph, f"{w.name}.panels", packed_panels(weights))
        packed[w] = panels
    if bias_value is None:
        bias_value = _initializer(graph, f"{w.name}.{last.name}.bias", bias)
    new = Replacement(last)
    new.put(new.call(name, x, panels, bias_value, *further, domain=DOMAIN))


def _follows(node: ir.Node, operator: str, columns: int) -> tuple[ir.Node, ir.Value, Floats] | None:
    """Returns the only reader, where it adds or multiplies a constant for each column."""
    reader = only_reader(node.outputs[0])
    if reader is None or reader.op_type != operator:
        return None
    for value in reader.inputs:
        constant = _constant(value) if value is not None else None
        if value is not None and constant is not None and constant.shape == (columns,):
            return reader, value, constant
    return None


def _residual(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Returns the only reader and what it adds, a computed tensor of the same shape."""
    reader = only_reader(node.outputs[0])
    if reader is None or reader.op_type != "Add":
        return None
    others = [value for value in reader.inputs if value is not node.outputs[0]]
    if len(others) != 1 or others[0] is None or _constant(others[0]) is not None:
        return None
    same = shape_of(others[0]) == shape_of(node.outputs[0])
    return (reader, others[0]) if same else None


def _is_exact(gelu: ir.Node) -> bool:
    return gelu.attributes.get_string("approximate", "none") == "none"


def _constant(value: ir.Value) -> Floats | None:
    constant = ir.convenience.get_const_tensor(value)
    if constant is None or constant.dtype != ir.DataType.FLOAT:
        return None
    array: Floats = constant.numpy()
    return array


def _initializer(graph: ir.Graph, name: str, array: Floats) -> ir.Value:
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
