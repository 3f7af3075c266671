"""Finds the linears of an ONNX graph, and those that a reduced precision may touch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tokexport.graph_passes.onnx_passes.graph.precision_roles import (
    Roles,
    Step,
    is_marked,
    roles_of,
)

_DECISIONS: Final = frozenset(
    {
        ir.DataType.BOOL,
        *(ir.DataType[f"{sign}INT{bits}"] for sign in ("", "U") for bits in (8, 16, 32, 64)),
    }
)
_IMAGE_AXES: Final = 4


@dataclass(frozen=True)
class Linear:
    """A product of rows (…, K) with a constant matrix.

    Attributes:
        node: ``MatMul`` or ``Gemm``.
        rows: What is multiplied.
        weight: What holds the matrix.
        transposed: Whether that is (N, K), and not (K, N).
        bias: What a Gemm adds; None where it adds nothing.
    """

    node: ir.Node
    rows: ir.Value
    weight: ir.Value
    transposed: bool = False
    bias: ir.Value | None = None

    def matrix(self) -> NDArray[np.float32]:
        """Returns the matrix, (K, N)."""
        matrix = _evaluated(self.weight)
        return np.ascontiguousarray(matrix.T if self.transposed else matrix)


def as_linear(node: ir.Node) -> Linear | None:
    """Returns a node as a linear of float32; None where it is none."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    rows, weight = node.inputs[0], node.inputs[1]
    if rows is None or weight is None or rows.dtype != ir.DataType.FLOAT:
        return None
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    shape = weight.shape
    if shape is None or shape.rank() != 2 or not _is_constant(weight):
        return None
    if node.op_type == "MatMul":
        return Linear(node, rows, weight, turned)
    factors = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if factors != (1.0, 1.0) or node.attributes.get_int("transA", 0) != 0:
        return None
    return Linear(node, rows, weight, turned, bias)


def block_linears(model: ir.Model) -> list[Linear]:
    """Returns the linears that a reduced precision may touch, in the order of the graph.

    Left out are those that only select tokens, those that give the outputs, and the one that makes
    tokens of an image. The types of all values have to be known.
    """
    nodes = list(model.graph)
    roles = roles_of(steps_of(model.graph))
    offset = _first_node(model.graph)
    kept = roles.exact | roles.heads
    if any(len(each.shape or ()) >= _IMAGE_AXES for each in model.graph.inputs):
        kept |= roles.first
    linears = ((i, as_linear(node)) for i, node in enumerate(nodes))
    return [one for i, one in linears if one is not None and i + offset not in kept]


def roles_of_nodes(graph: ir.Graph) -> tuple[Roles, dict[ir.Node, int]]:
    """Returns the roles of a graph, and the position of every node among them."""
    offset = _first_node(graph)
    return roles_of(steps_of(graph)), {node: i + offset for i, node in enumerate(graph)}


def steps_of(graph: ir.Graph) -> list[Step]:
    """Returns a graph as steps: its inputs, one for all constants, its nodes, its outputs."""
    places: dict[ir.Value, tuple[int, int]] = {}
    steps: list[Step] = []
    for value in graph.inputs:
        places[value] = len(steps), 0
        steps.append(Step(decides=(decides(value),), given=True))
    constants = len(steps)
    steps.append(Step(constant=True))

    def reads(values: Iterator[ir.Value]) -> tuple[tuple[int, int], ...]:
        return tuple(places.get(value, (constants, 0)) for value in values)

    for node in graph:
        constant = node.op_type == "Constant" and node.domain == ""
        for at, value in enumerate(node.outputs):
            places[value] = len(steps), at
        steps.append(
            Step(
                reads(_read(node)),
                tuple(decides(value) for value in node.outputs),
                constant=constant,
                wide=any(each is not None and is_marked(each.name) for each in node.inputs),
                linear=as_linear(node) is not None,
                convolves=node.op_type in ("Conv", "ConvTranspose"),
            )
        )
    steps += [Step(reads(iter((value,))), answers=True) for value in graph.outputs]
    return steps


def decides(value: ir.Value) -> bool:
    """Returns whether a value is of whole numbers or truths."""
    return value.dtype in _DECISIONS


def _is_constant(value: ir.Value) -> bool:
    """Returns whether a value is a constant, or a slice or a transpose of one."""
    if ir.convenience.get_const_tensor(value) is not None:
        return True
    made = value.producer()
    if made is None or made.domain != "" or made.op_type not in ("Slice", "Transpose"):
        return False
    if not all(each is not None and _is_constant(each) for each in made.inputs):
        return False
    steps = made.inputs[4] if len(made.inputs) > 4 else None
    return steps is None or bool((_evaluated(steps) > 0).all())


def _evaluated(value: ir.Value) -> NDArray[Any]:
    """Returns the array that a value of ``_is_constant`` holds."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        array: NDArray[Any] = tensor.numpy()
        return array
    made = value.producer()
    assert made is not None
    given, *rest = (_evaluated(each) for each in made.inputs if each is not None)
    if made.op_type == "Transpose":
        return given.transpose(made.attributes.get_ints("perm", None))
    starts, ends = rest[0], rest[1]
    axes = rest[2] if len(rest) > 2 else range(len(starts))
    steps = rest[3] if len(rest) > 3 else [1] * len(starts)
    index = [slice(None)] * given.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end, step)
    return given[tuple(index)]


def _first_node(graph: ir.Graph) -> int:
    return len(graph.inputs) + 1


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """Yields what a node reads, within its subgraphs too; the operand of a type is none."""
    values = node.inputs[:1] if node.op_type == "CastLike" else node.inputs
    yield from (value for value in values if value is not None)
    for attribute in node.attributes.values():
        graphs = attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()
        graphs = (attribute.as_graph(),) if attribute.type == ir.AttributeType.GRAPH else graphs
        for graph in graphs:
            for inner in graph:
                yield from _read(inner)
