"""Finds the epilogue of a product with constant weights: a bias, a GELU or a residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.producers import only_reader
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Epilogue:
    """An epilogue: product · scale + bias, and then a GELU or a residual.

    Attributes:
        suffix: Of the function that computes it: '', ``_gelu`` or ``_add``.
        last: The last node that it replaces.
        bias: (C), already scaled.
        bias_value: The value in the graph that holds the bias; None where none does.
        scale: (C); None where nothing scales the product.
        added: The residual, in the order of the function's inputs.
    """

    suffix: str
    last: ir.Node
    bias: Floats
    bias_value: ir.Value | None
    scale: Floats | None
    added: tuple[ir.Value, ...]


def epilogue(product: ir.Node, columns: int) -> Epilogue:
    """Finds the epilogue of a node that gives a product (…, columns)."""
    last, bias = product, np.zeros(columns, np.float32)
    bias_value = scale = None
    if (found := _follows(last, "Add", columns)) is not None:
        last, bias_value, bias = found
    if (found := _follows(last, "Mul", columns)) is not None:
        last, _, scale = found
        bias_value, bias = None, bias * scale
    gelu = only_reader(last.outputs[0])
    if gelu is not None and gelu.op_type == "Gelu" and _is_exact(gelu):
        return Epilogue("_gelu", gelu, bias, bias_value, scale, ())
    residual = _residual(last)
    if residual is not None:
        last, added = residual
        return Epilogue("_add", last, bias, bias_value, scale, (added,))
    return Epilogue("", last, bias, bias_value, scale, ())


def _follows(node: ir.Node, operator: str, columns: int) -> tuple[ir.Node, ir.Value, Floats] | None:
    """Returns the only reader, where it adds or multiplies a constant for each column."""
    reader = only_reader(node.outputs[0])
    if reader is None or reader.op_type != operator:
        return None
    for value in reader.inputs:
        constant = floats_of(value) if value is not None else None
        if value is not None and constant is not None and constant.shape == (columns,):
            return reader, value, constant
    return None


def _residual(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Returns the only reader and what it adds, a computed tensor of the same shape."""
    reader = only_reader(node.outputs[0])
    if reader is None or reader.op_type != "Add":
        return None
    others = [value for value in reader.inputs if value is not node.outputs[0]]
    if len(others) != 1 or others[0] is None or floats_of(others[0]) is not None:
        return None
    same = shape_of(others[0]) == shape_of(node.outputs[0])
    return (reader, others[0]) if same else None


def _is_exact(gelu: ir.Node) -> bool:
    return gelu.attributes.get_string("approximate", "none") == "none"


def floats_of(value: ir.Value) -> Floats | None:
    """Returns the float32 constant of a value; None for other values."""
    constant = ir.convenience.get_const_tensor(value)
    if constant is None or constant.dtype != ir.DataType.FLOAT:
        return None
    array: Floats = constant.numpy()
    return array
