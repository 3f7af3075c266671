"""ONNX models that call functions of domain ``tokexport``, one node each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_ir as ir
from helpers.token_cases import Array
from onnx import TensorProto, helper

from tokexport.graph_passes.ops import onnx_functions as functions

_TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int8": TensorProto.INT8,
}


@dataclass(frozen=True)
class Call:
    """One call of a function.

    Attributes:
        name: The function.
        inputs: Its arguments in order.
        shapes: The shape of each result.
        attributes: Its attributes.
        read: Which results are outputs of the model; all where empty.
    """

    name: str
    inputs: Sequence[Array]
    shapes: Sequence[tuple[int, ...]]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    read: tuple[int, ...] = ()


def model_of(calls: Sequence[Call]) -> ir.Model:
    """Returns a model whose inputs are ``in0, in1, …``, counted over all calls."""
    nodes: list[onnx.NodeProto] = []
    inputs: list[onnx.ValueInfoProto] = []
    outputs: list[onnx.ValueInfoProto] = []
    unread: list[onnx.ValueInfoProto] = []
    for position, call in enumerate(calls):
        names = []
        for array in call.inputs:
            names.append(f"in{len(inputs)}")
            kind = _TYPES[str(array.dtype)]
            inputs.append(helper.make_tensor_value_info(names[-1], kind, array.shape))
        results = functions.signatures()[call.name].outputs
        given = [f"{result}_{position}" for result, _ in results]
        node = helper.make_node(
            call.name, names, given, f"call{position}", domain=functions.DOMAIN, **call.attributes
        )
        nodes.append(node)
        read = call.read or range(len(results))
        for i, (_, letter) in enumerate(results):
            kind = TensorProto.INT64 if letter == "I" else TensorProto.FLOAT
            described = helper.make_tensor_value_info(given[i], kind, call.shapes[i])
            (outputs if i in read else unread).append(described)
    model = helper.make_model(
        helper.make_graph(nodes, "calls", inputs, outputs, value_info=unread),
        functions=functions.with_callees({call.name for call in calls}),
        opset_imports=[
            helper.make_opsetid("", functions.OPSET),
            helper.make_opsetid(functions.DOMAIN, functions.DOMAIN_VERSION),
        ],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return ir.from_proto(model)


def all_inputs(calls: Sequence[Call]) -> list[Array]:
    """Returns the arguments of all calls in the order of the model's inputs."""
    return [array for call in calls for array in call.inputs]
