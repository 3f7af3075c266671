"""Makes a row that is added to a product the first operand, in an OpenVINO model.

Before → after, in the IR, for rows of shape (1, …, 1, N)::

    Add(… q·kᵀ …, row)              →  Add(row, … q·kᵀ …)
    Multiply(… q·kᵀ …, row)         →  Multiply(row, … q·kᵀ …), so Maximum and Minimum
    Subtract(… q·kᵀ …, row)         →  Add(-row, … q·kᵀ …)
    Divide(… q·kᵀ …, row)           →  Multiply(1 / row, … q·kᵀ …)

The row is the logarithms of token sizes or a mask of keys, at batch 1. The CPU plugin fuses what
follows a product of bytes (with AMX) or of bfloat16 into the product, and 2026.4.1 reads the row
wrongly there: the attention is garbage or NaN. It looks for the product as the first operand, and
leaves the sum to the attention's kernel if that is the row. This is no slower.

A fixed factor is moved to the scale of a product of bytes wherever it stands, so that product is
left out of the quantisation, by ``scaled_by_fixed_row``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from tokexport.exporter.openvino_graph.roles import is_fixed, is_linear, name
from tokexport.runtimes.importing import import_runtime

#: Operators whose two operands may change places.
_COMMUTES: Final = ("Add", "Multiply", "Maximum", "Minimum")
#: What may stand between a product and the row, reading one number for each that it gives.
_BETWEEN: Final = (
    *_COMMUTES, "Clamp", "Convert", "Divide", "FakeQuantize", "PRelu", "Relu", "Reshape", "Squeeze",
    "Subtract", "Unsqueeze",
)  # fmt: skip


def put_rows_first(model: Any) -> int:
    """Makes rows of an ``openvino.Model`` first operands, in place; returns how many it moved."""
    found = list(_with_rows(model))
    for operator in found:
        _turn(operator)
    return len(found)


def scaled_by_fixed_row(model: Any) -> set[str]:
    """Returns the names of the products of an ``openvino.Model`` that a fixed row multiplies."""
    names: set[str] = set()
    for operator in model.get_ordered_ops():
        if operator.get_type_name() not in ("Multiply", "Divide"):
            continue
        for row, other in ((1, 0), (0, 1)):
            if _is_row(operator.input_value(row)) and is_fixed(operator.input_value(row)):
                products = _products(operator.input_value(other))
                names |= {product.get_friendly_name() for product in products}
    return names


def _with_rows(model: Any) -> Iterator[Any]:
    """Yields the operators to swap: a row is their second operand, a product in the first."""
    for operator in model.get_ordered_ops():
        kind = operator.get_type_name()
        if kind not in (*_COMMUTES, "Subtract", "Divide") or not _is_row(operator.input_value(1)):
            continue
        if any(True for _ in _products(operator.input_value(0))):
            yield operator


def _turn(operator: Any) -> None:
    first, row = operator.input_value(0), operator.input_value(1)
    if operator.get_type_name() in _COMMUTES:
        operator.input(0).replace_source_output(row)
        operator.input(1).replace_source_output(first)
        return
    opset = import_runtime("openvino.opset13", extra="openvino")
    if operator.get_type_name() == "Subtract":
        new = opset.add(opset.negative(row), first)
    else:
        # The optimiser joins a product with a power of the one number -1 to a division again.
        exponents = np.full(tuple(row.get_shape()), -1.0, np.float32)
        new = opset.multiply(opset.power(row, opset.constant(exponents)), first)
    new.set_friendly_name(operator.get_friendly_name())
    operator.output(0).replace(new.output(0))


def _products(port: Any) -> Iterator[Any]:
    """Yields the products of two activations that a value is computed from, number by number."""
    ahead, seen = [port.get_node()], set()
    while ahead:
        node = ahead.pop()
        kind = node.get_type_name()
        if name(node) in seen:
            continue
        seen.add(name(node))
        if kind == "MatMul" and not is_linear(node):
            yield node
        elif kind in _BETWEEN:
            sources = node.input_values()
            ahead += [one.get_node() for one in sources if not is_fixed(one) and not _is_row(one)]


def _is_row(port: Any) -> bool:
    """Returns whether a value is one row of numbers."""
    shape = port.get_partial_shape()
    if shape.is_dynamic or not port.get_element_type().is_real():
        return False
    sizes = tuple(shape.to_shape())
    return len(sizes) > 0 and sizes[-1] > 1 and all(size == 1 for size in sizes[:-1])
