"""The GEMM floor: the time that the products with weights take by themselves.

What it counts: every MatMul and Gemm of the emitted graph, rewritten and without the rows and
columns that nothing reads, of which one float32 operand comes from the input and the other is a
weight or another constant, on exactly the shapes that it has there: its rows are those that the
reduction leaves. What it leaves out: biases, convolutions (the patch embedding), products of two
values that both depend on the input (attention, matching), and everything that is no product.

The products do not feed each other. Before → after, for two of them::

    x → MatMul(W₁) → … → Gemm(W₂, b) → y      a → MatMul(W₁) → first element ┐
                                              b → Gemm(W₂)   → first element ┴→ Concat → first

Each takes a tensor of the shape it has in the graph, drawn from a seed and shared among products of
equal shapes, and one element of each result is read, so that ONNX Runtime computes it and copies
nothing out. It is in fp32 whatever is held against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.ops.onnx_functions import OPSET
from tokexport.runtimes.arrays import Array

#: Of each operator, the attributes that say what is multiplied.
_ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    "MatMul": (),
    "Gemm": ("transA", "transB", "alpha"),
}
_IR_VERSION: Final = 10
_FLOAT: Final = ir.DataType.FLOAT


@dataclass(frozen=True)
class Product:
    """One product with a weight.

    Attributes:
        operator: ``MatMul`` or ``Gemm``.
        shapes: The shapes of both operands, in their order.
        result: The shape of the result.
        weight_at: Which operand is the weight, 0 or 1.
        attributes: Those of the operator.
        weight: The weight; None where the graph computes it from constants.
    """

    operator: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    result: tuple[int, ...]
    weight_at: int
    attributes: dict[str, int | float]
    weight: ir.TensorProtocol | None = field(repr=False, compare=False)

    @property
    def macs(self) -> int:
        """Multiply-accumulates: each element of the result sums over the shared axis."""
        first = self.shapes[0]
        return prod(self.result) * first[-2 if self.attributes.get("transA") else -1]


def weight_products(model: ir.Model) -> tuple[Product, ...]:
    """Returns the products with a weight in an emitted model, in the order of its graph."""
    constant = _constant_values(model)
    needed = _needed_nodes(model)
    found = (_product(node, constant) for node in model.graph if node in needed)
    return tuple(product for product in found if product is not None and product.macs)


def floor_model(products: Sequence[Product], seed: int) -> tuple[ir.Model, dict[str, Array]]:
    """Returns a model of the products alone, and the inputs that it takes.

    Args:
        products: At least one.
        seed: The seed of the inputs, standard normal numbers.

    Returns:
        The model and an array for each of its inputs, one for each shape. The output ``first``
        holds the first element of each result, (products,).
    """
    generator = np.random.default_rng(seed)
    inputs: dict[tuple[int, ...], ir.Value] = {}
    constants: dict[object, ir.Value] = {}
    nodes: list[ir.Node] = []
    firsts: list[ir.Value] = []

    def constant(key: object, tensor: ir.TensorProtocol) -> ir.Value:
        if key not in constants:
            constants[key] = _value(f"constant_{len(constants)}", tensor)
        return constants[key]

    for product in products:
        shape = product.shapes[1 - product.weight_at]
        if shape not in inputs:
            inputs[shape] = ir.val(f"input_{len(inputs)}", _FLOAT, shape)
        tensor = product.weight
        if tensor is None:
            drawn = generator.standard_normal(product.shapes[product.weight_at])
            tensor = ir.tensor(drawn.astype(np.float32))
        operands = [inputs[shape], constant(id(tensor), tensor)]
        if product.weight_at == 0:
            operands.reverse()
        times = ir.node(product.operator, operands, product.attributes)
        origin = np.zeros((1, len(product.result)), np.int64)
        if product.result:
            place = constant(f"origin {len(product.result)}", ir.tensor(origin))
            first = ir.node("GatherND", [times.outputs[0], place])
        else:
            first = ir.node("Reshape", [times.outputs[0], constant("one", ir.tensor([1]))])
        nodes += [times, first]
        firsts.append(first.outputs[0])
    joined = ir.node(
        "Concat", firsts, {"axis": 0}, outputs=[ir.val("first", _FLOAT, [len(firsts)])]
    )
    graph = ir.Graph(
        list(inputs.values()),
        joined.outputs,
        nodes=[*nodes, joined],
        initializers=list(constants.values()),
        opset_imports={"": OPSET},
        name="floor",
    )
    arrays = {
        str(value.name): generator.standard_normal(shape).astype(np.float32)
        for shape, value in inputs.items()
    }
    return ir.Model(graph, ir_version=_IR_VERSION), arrays


def _product(node: ir.Node, constant: set[ir.Value]) -> Product | None:
    """Reads a node as a product of one constant and one value of the input, float32 both."""
    if node.domain or node.op_type not in _ATTRIBUTES:
        return None
    first, second = node.inputs[:2]
    if first is None or second is None or (first in constant) == (second in constant):
        return None
    if first.dtype != _FLOAT or second.dtype != _FLOAT:
        return None
    weight_at = 0 if first in constant else 1
    attributes = {
        name: node.attributes[name].value
        for name in _ATTRIBUTES[node.op_type]
        if name in node.attributes
    }
    return Product(
        node.op_type,
        (_shape(first), _shape(second)),
        _shape(node.outputs[0]),
        weight_at,
        attributes,
        (first, second)[weight_at].const_value,
    )


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None, f"{value.name} has no shape"
    return value.shape.numpy()


def _constant_values(model: ir.Model) -> set[ir.Value]:
    """Returns the values that do not depend on the input."""
    found: set[ir.Value] = set(model.graph.initializers.values())
    for node in model.graph:
        if all(value is None or value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _needed_nodes(model: ir.Model) -> set[ir.Node]:
    """Returns the nodes that an output depends on."""
    needed: set[ir.Node] = set()
    wanted = [value.producer() for value in model.graph.outputs]
    while wanted:
        node = wanted.pop()
        if node is not None and node not in needed:
            needed.add(node)
            wanted += [value.producer() for value in node.inputs if value is not None]
    return needed


def _value(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
