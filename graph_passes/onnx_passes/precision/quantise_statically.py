"""Multiplies the blocks' linears in 8-bit integers, on ranges that were measured beforehand.

Before → after::

    MatMul(x, W) + b     W (K, N) and b (N,) constant, x from low to high
    →  MatMulIntegerToFloat(QuantizeLinear(x, s, z), W8, s, t, z, –, b)
       s = (high - low) / 255, z = -low / s, W ≈ W8 · t

QuantizeLinear stands once for all readers of x. ``MatMulIntegerToFloat`` is ONNX Runtime's own
operator: between a DequantizeLinear on either side, its optimiser turns the product and its bias
into a Gemm of floats before it looks for integers. Its bias is a vector: one number, or a row, that
a Gemm adds becomes one; a table, or what is computed in another shape, is added behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.errors import PassError
from tokexport.graph_passes.onnx_passes.graph.initializers import add_initializer
from tokexport.graph_passes.onnx_passes.graph.linears import Linear, block_linears
from tokexport.graph_passes.onnx_passes.graph.node_pass import Counted, OnnxPass
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.source_lines import node_place
from tokexport.graph_passes.onnx_passes.precision.quantise_dynamically import held

#: The domain of ONNX Runtime's own operators.
DOMAIN: Final = "com.microsoft"
_LEVELS: Final = 255


@dataclass(frozen=True)
class QuantiseStatically(OnnxPass):
    """Quantises the linears of the blocks; what selects tokens, and the head, stay as they are.

    Attributes:
        ranges: The smallest and the largest value of every input of ``block_linears``, by name.
        weight_bits: 8, or 7 for a processor whose sums of products saturate.
    """

    name = "quantise statically"
    comes_before = ("pack linears",)
    ranges: Mapping[str, tuple[float, float]]
    weight_bits: int = 8

    def requires(self, model: ir.Model) -> None:
        """Raises PassError where the range of what a linear reads was not measured."""
        for linear in block_linears(model):
            if linear.rows.name not in self.ranges:
                what = f"The pass '{self.name}' needs the range of '{linear.rows.name}'."
                raise PassError(what, where=node_place(linear.node))

    def call(self, model: ir.Model) -> Counted:
        """Rewrites in place."""
        linears = block_linears(model)
        inputs: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        weights: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value]] = {}
        for linear in linears:
            new = Replacement(linear.node)
            if linear.rows not in inputs:
                scale, zero = _scale_and_zero(model, linear.rows, self.ranges)
                inputs[linear.rows] = (
                    new.call("QuantizeLinear", linear.rows, scale, zero),
                    scale,
                    zero,
                )
            key = linear.weight, linear.transposed
            if key not in weights:
                weights[key] = held(model, linear, self.weight_bits)
            integers, scale, zero = inputs[linear.rows]
            matrix, columns = weights[key]
            added, bias = _bias(model, linear)
            operands = integers, matrix, scale, columns, zero, None, bias
            result = new.call("MatMulIntegerToFloat", *operands, domain=DOMAIN)
            if linear.bias is not None and bias is None:
                result = new.call("Add", result, linear.bias)
            new.put(result)
            if added is not None:
                ir.convenience.replace_all_uses_with(added.outputs[0], result)
                model.graph.remove(added, safe=True)
        if linears:
            model.opset_imports.setdefault(DOMAIN, 1)
        return Counted(model, bool(linears), len(linears))


def _scale_and_zero(
    model: ir.Model, rows: ir.Value, ranges: Mapping[str, tuple[float, float]]
) -> tuple[ir.Value, ir.Value]:
    """Adds the scale and the zero point of an input: 0 always has an integer of its own."""
    assert rows.name is not None
    low, high = ranges[rows.name]
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / _LEVELS if high > low else 1.0)
    zero = np.uint8(np.clip(np.rint(-low / scale), 0, _LEVELS))
    return (
        add_initializer(model.graph, f"{rows.name}_scale", np.array(scale)),
        add_initializer(model.graph, f"{rows.name}_zero", np.array(zero)),
    )


def _bias(model: ir.Model, linear: Linear) -> tuple[ir.Node | None, ir.Value | None]:
    """Returns the vector (N,) that is added to a linear, and the Add that does, if any.

    Other operands of a Gemm, such as a table (M, N), have to be added after it.
    """
    if linear.bias is not None:
        return None, _of_gemm(model, linear, linear.bias)
    readers = tuple(linear.node.outputs[0].uses())
    if len(readers) != 1 or linear.node.outputs[0].is_graph_output():
        return None, None
    added = readers[0].node
    others = [value for value in added.inputs if value is not linear.node.outputs[0]]
    if added.domain != "" or added.op_type != "Add" or added.outputs[0].is_graph_output():
        return None, None
    if len(others) != 1 or others[0] is None:
        return None, None
    columns = linear.node.outputs[0].shape
    if columns is None or ir.convenience.get_const_tensor(others[0]) is None:
        return None, None
    return (added, others[0]) if others[0].shape == ir.Shape((columns[-1],)) else (None, None)


def _of_gemm(model: ir.Model, linear: Linear, bias: ir.Value) -> ir.Value | None:
    """Returns the bias of a Gemm as a vector (N,); None if it is no vector."""
    columns = linear.matrix().shape[1]
    if bias.shape == ir.Shape((columns,)):
        return bias
    constant = ir.convenience.get_const_tensor(bias)
    if constant is None or constant.numpy().shape not in ((), (1,), (1, 1), (1, columns)):
        return None
    vector = np.broadcast_to(constant.numpy().reshape(-1), (columns,))
    return add_initializer(model.graph, f"{bias.name}_vector", np.ascontiguousarray(vector))
