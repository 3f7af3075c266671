"""Multiplies the blocks' linears in 8-bit integers, on the range of each input when it runs.

Before → after::

    MatMul(x, W)         W (K, N) constant
    →  q, s, z = DynamicQuantizeLinear(x)                             once for all readers of x
       Cast(MatMulInteger(q, W8, z)) · (s · t)                        W ≈ W8 · t, t (N,)
    Gemm(x, W, b)        →  the same, + b

ONNX Runtime makes one kernel of the four nodes and the bias behind them. Weights are symmetric with
a scale for each column, activations unsigned: the product that a processor has instructions for.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.initializers import add_initializer
from tokexport.graph_passes.onnx_passes.graph.integer_weights import per_channel
from tokexport.graph_passes.onnx_passes.graph.linears import Linear, block_linears
from tokexport.graph_passes.onnx_passes.graph.node_pass import Counted, OnnxPass
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement


@dataclass(frozen=True)
class QuantiseDynamically(OnnxPass):
    """Quantises the linears of the blocks; what selects tokens, and the head, stay as they are.

    Attributes:
        weight_bits: 8, or 7 for a processor whose sums of products saturate.
    """

    name = "quantise dynamically"
    comes_before = ("pack linears", "pack integer linears")
    weight_bits: int = 8

    def call(self, model: ir.Model) -> Counted:
        """Rewrites in place."""
        linears = block_linears(model)
        inputs: dict[ir.Value, tuple[ir.Value, ...]] = {}
        weights: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value]] = {}
        for linear in linears:
            new = Replacement(linear.node)
            if linear.rows not in inputs:
                first = new.call("DynamicQuantizeLinear", linear.rows, outputs=3)
                made = first.producer()
                assert made is not None
                inputs[linear.rows] = tuple(made.outputs)
            integers, scale, zero = inputs[linear.rows]
            key = linear.weight, linear.transposed
            if key not in weights:
                weights[key] = held(model, linear, self.weight_bits)
            matrix, columns = weights[key]
            product = new.call("MatMulInteger", integers, matrix, zero)
            factor = new.call("Mul", scale, columns)
            result = new.call("Mul", new.call("Cast", product, to=ir.DataType.FLOAT), factor)
            if linear.bias is not None:
                result = new.call("Add", result, linear.bias)
            new.put(result)
        return Counted(model, bool(linears), len(linears))


def held(model: ir.Model, linear: Linear, bits: int) -> tuple[ir.Value, ir.Value]:
    """Adds the integers (K, N) and the scales (N,) of a linear's matrix to the model's weights."""
    integers, scale = per_channel(linear.matrix(), bits)
    names = f"{linear.weight.name}_{linear.node.outputs[0].name}"
    return (
        add_initializer(model.graph, f"{names}_int8", integers),
        add_initializer(model.graph, f"{names}_scale", scale),
    )
