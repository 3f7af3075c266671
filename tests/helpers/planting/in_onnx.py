"""Plants faults in ONNX graphs, and in the calls of native kernels that they name."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import onnx_ir as ir
from helpers.planting.plants import How, Place, factors, faults_of_value

from tokexport.graph_passes.onnx_passes.every_target.annotate_kernel_calls import KERNEL_CALLS
from tokexport.graph_passes.ops.onnx_functions import DOMAIN

_SWAPS = {"Sub": (1, 0), "Div": (1, 0), "Where": (0, 2, 1), "Less": (1, 0), "Greater": (1, 0)}
_DTYPES = {ir.DataType.FLOAT: "float", ir.DataType.BOOL: "bool", ir.DataType.INT64: "int"}
_READERS = ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND")


def faults_in(model: ir.Model, draw: random.Random) -> list[tuple[str, str, How]]:
    """Returns every fault (node, kind, how) that the main graph of a model can have."""
    found: list[tuple[str, str, How]] = []
    for value in _values(model):
        place = _place(value)
        if place is not None:
            found += [(place.node, *one) for one in faults_of_value(place, draw)]
    for node in model.graph:
        name = str(node.outputs[0].name)
        found += [(name, *one) for one in _faults_of_call(node)]
    return found + [*_inputs_swapped(model)]


def faults_of_kernels(model: ir.Model) -> list[tuple[str, str, How]]:
    """Returns every fault that the native kernels named in a model can have."""
    calls = json.loads(model.metadata_props.get(KERNEL_CALLS, "[]"))
    return [
        (f"call {position}", "an argument of a kernel", {"change": "kernel", "attribute": name})
        for position, call in enumerate(calls)
        for name in call["attributes"]
    ]


def plant(model: ir.Model, node: str, how: How) -> None:
    """Plants a fault in a model, in place.

    Args:
        model: The model.
        node: The name of the value, or of the first result of the node.
        how: What is done.
    """
    if how["change"] == "kernel":
        calls = json.loads(model.metadata_props[KERNEL_CALLS])
        calls[int(node.removeprefix("call "))]["attributes"][how["attribute"]] += 1
        model.metadata_props[KERNEL_CALLS] = json.dumps(calls)
        return
    (value,) = (one for one in _values(model) if one.name == node)
    producer = value.producer()
    match how["change"]:
        case "arguments":
            assert producer is not None
            given = [producer.inputs[one] for one in how["order"]]
            for position, one in enumerate(given):
                producer.replace_input_with(position, one)
        case "attribute":
            assert producer is not None
            producer.attributes[how["name"]] = ir.convenience.convert_attribute(
                how["name"], how["value"]
            )
        case "whole numbers":
            assert producer is not None
            numbers = [one + 1 for one in producer.attributes[how["name"]].as_ints()]
            producer.attributes[how["name"]] = ir.AttrInt64s(how["name"], numbers)
        case "ties":
            assert producer is not None
            _turn_ties(model, producer)
        case "inputs":
            (other,) = (one for one in model.graph.inputs if one.name == how["other"])
            _swap_users(value, other)
        case _:
            _change_value(model, value, how)


def same_place(model: ir.Model, other: ir.Model, node: str) -> str | None:
    """Returns where a fault belongs in another model of the same graph, told how to decide.

    Args:
        model: The model that the place is one of.
        other: The other one.
        node: The place.

    Returns:
        The name there; None where the other one does not compute it.
    """
    (value,) = (one for one in _values(model) if one.name == node)
    producer = value.producer()
    if producer is None:
        return _same_constant(other, value) if value.const_value is not None else node
    mine, others = [*model.graph], [*other.graph]
    blocks = SequenceMatcher(
        None, [*map(_likeness, mine)], [*map(_likeness, others)], autojunk=False
    ).get_matching_blocks()
    place = mine.index(producer)
    for block in blocks:
        if block.a <= place < block.a + block.size:
            twin = others[block.b + place - block.a]
            return str(twin.outputs[producer.outputs.index(value)].name)
    return None


def _likeness(node: ir.Node) -> tuple[object, ...]:
    return node.domain, node.op_type, *map(_shape, node.outputs)


def _same_constant(other: ir.Model, value: ir.Value) -> str | None:
    assert value.const_value is not None
    mine = value.const_value.numpy()
    for name, one in other.graph.initializers.items():
        if one.const_value is not None and one.const_value.shape == value.const_value.shape:
            theirs = one.const_value.numpy()
            if theirs.dtype == mine.dtype and np.array_equal(theirs, mine, equal_nan=True):
                return str(name)
    return None


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(int(str(size)) for size in value.shape)


def _place(value: ir.Value) -> Place | None:
    shape, dtype = _shape(value), _DTYPES.get(value.dtype) if value.dtype else None
    producer = value.producer()
    constant = producer is not None and producer.op_type == "Constant"
    if shape is None or dtype is None or not (value.uses() or value.is_graph_output()):
        return None
    held = None if value.const_value is None else value.const_value.numpy()
    fills = False
    if held is not None and dtype == "float":
        fills = bool(np.any(np.abs(held) > 1e4)) and bool(np.any(held == 0))
    return Place(
        str(value.name),
        shape,
        dtype,
        "" if producer is None else producer.op_type,
        weight=held is not None or constant,
        output=value.is_graph_output(),
        index=held is None and not constant and _is_index(value),
        fills=fills,
        averaged=_averaged(value),
    )


def _is_index(value: ir.Value) -> bool:
    return any(
        use.idx > 0 and (use.node.op_type in _READERS or use.node.domain == DOMAIN)
        for use in value.uses()
    )


def _averaged(value: ir.Value) -> int:
    producer = value.producer()
    if producer is None or producer.op_type != "ReduceMean" or producer.inputs[0] is None:
        return 0
    given, gives = _shape(producer.inputs[0]), _shape(value)
    if given is None or gives is None:
        return 0
    return math.prod(given) // max(math.prod(gives), 1)


def _faults_of_call(node: ir.Node) -> Iterator[tuple[str, How]]:
    ranks = [_shape(one) for one in node.inputs if one is not None]
    if node.op_type in _SWAPS and (node.op_type != "Where" or len({*ranks[1:]}) == 1):
        yield "operands swapped", {"change": "arguments", "order": [*_SWAPS[node.op_type]]}
    if node.op_type == "Concat" and len(node.inputs) > 1 and _is_float(node.outputs[0]):
        order = [*range(1, len(node.inputs)), 0]
        yield "operands swapped", {"change": "arguments", "order": order}
    if node.op_type == "Gelu":
        yield "an approximation", {"change": "attribute", "name": "approximate", "value": "tanh"}
    if node.op_type == "Softmax" and len(shape := _shape(node.outputs[0]) or ()) > 2:
        axis = node.attributes["axis"].as_int() % len(shape) if "axis" in node.attributes else 1
        other = (axis + 1) % len(shape)
        yield "a wrong axis", {"change": "attribute", "name": "axis", "value": other}
    if node.op_type == "TopK" and _shape(node.inputs[0]) is not None:  # type: ignore[arg-type]
        yield "an unstable order", {"change": "ties"}
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.FLOAT and attribute.as_float() != 0:
            times = 100 if name == "epsilon" else 1.01
            kind = "an eps" if name == "epsilon" else "a constant stale by 1 %"
            yield kind, {"change": "attribute", "name": name, "value": attribute.as_float() * times}
        elif node.domain == DOMAIN and attribute.type == ir.AttributeType.INTS:
            yield "an argument of a kernel", {"change": "whole numbers", "name": name}


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


def _inputs_swapped(model: ir.Model) -> Iterator[tuple[str, str, How]]:
    inputs = [*model.graph.inputs]
    for position, one in enumerate(inputs):
        for other in inputs[position + 1 :]:
            if (one.dtype, _shape(one)) == (other.dtype, _shape(other)):
                yield str(one.name), "two inputs swapped", {"change": "inputs", "other": other.name}


def _swap_users(one: ir.Value, other: ir.Value) -> None:
    uses, others = [*one.uses()], [*other.uses()]
    for use in uses:
        use.node.replace_input_with(use.idx, other)
    for use in others:
        use.node.replace_input_with(use.idx, one)


def _turn_ties(model: ir.Model, node: ir.Node) -> None:
    """Lets the higher index come first among equals."""
    given = node.inputs[0]
    assert given is not None
    shape = _shape(given)
    assert shape is not None
    axis = node.attributes["axis"].as_int() % len(shape) if "axis" in node.attributes else -1
    count = shape[axis]
    back = _constant(np.arange(count - 1, -1, -1))
    turn = ir.node("Gather", [given, back.outputs[0]], attributes={"axis": axis})
    model.graph.insert_before(node, _named([back, turn]))
    node.replace_input_with(0, turn.outputs[0])
    last = _constant(np.array(count - 1))
    _replace(model, node.outputs[1], [last], ir.node("Sub", [last.outputs[0], node.outputs[1]]))


def _change_value(model: ir.Model, value: ir.Value, how: How) -> None:
    made: list[ir.Node] = []

    def call(operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        made.append(ir.node(operator, [*inputs], attributes=attributes))
        return made[-1].outputs[0]

    def constant(array: Any) -> ir.Value:
        made.append(_constant(array))
        return made[-1].outputs[0]

    match how["change"]:
        case "times":
            shape = _shape(value)
            assert shape is not None
            numbers = np.array(factors(how, shape), np.float32)
            after = len(shape) - 1 - how["axis"] if "axis" in how else 0
            shaped = numbers.reshape(-1, *[1] * after) if "axis" in how else numbers.reshape(())
            call("Mul", value, constant(shaped))
        case "take":
            call("Gather", value, constant(np.array(how["index"])), axis=how["axis"])
        case "bf16":  # a runtime may take away casts there and back: Veltkamp's splitting stays
            wide = call("Mul", value, constant(np.float32(2**16 + 1)))
            call("Sub", wide, call("Sub", wide, value))
        case "not":
            call("Not", value)
        case "back":
            less = call("Sub", value, constant(np.int64(1)))
            call("Max", less, constant(np.int64(0)))
        case _:
            raise ValueError(how["change"])
    _replace(model, value, made[:-1], made[-1])


def _constant(array: Any) -> ir.Node:
    return ir.node("Constant", [], attributes={"value": ir.tensor(np.asarray(array))})


def _named(nodes: list[ir.Node]) -> list[ir.Node]:
    for node in nodes:
        for value in node.outputs:
            value.name = f"planted_{id(value)}"
    return nodes


def _replace(model: ir.Model, value: ir.Value, made: list[ir.Node], last: ir.Node) -> None:
    """Lets whoever reads a value read the result of the last node instead."""
    new = last.outputs[0]
    new.type, new.shape = value.type, value.shape
    uses = [use for use in value.uses() if use.node not in (*made, last)]
    _named([*made, last])
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], [*made, last])
    else:
        model.graph.insert_after(producer, [*made, last])
    for use in uses:
        use.node.replace_input_with(use.idx, new)
    outputs = model.graph.outputs
    for position, output in enumerate(outputs):
        if output is value:
            value.name, new.name = f"{value.name}_right", value.name
            outputs[position] = new
