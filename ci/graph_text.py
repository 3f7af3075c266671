"""Writes graphs of artifacts as lines that do not depend on the names of inner values.

    v3 = ai.onnx::MatMul(x, f32[8,5] 3fa9…) {axis=1}

A value is named by its place in the order of the graph, a weight by its type, shape and hash; the
names of inputs and outputs stay, since callers use them. What only explains a graph, as the source
lines that nodes carry, comes in lines of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
from onnx import helper, numpy_helper


@dataclass(frozen=True)
class GraphText:
    """A graph as lines.

    Attributes:
        lines: What it computes.
        notes: What explains it.
    """

    lines: list[str]
    notes: list[str]


def onnx_text(path: Path) -> GraphText:
    """Writes an ONNX file, with its functions, as lines."""
    model = onnx.load(path)
    lines = [f"opset {one.domain or 'ai.onnx'} {one.version}" for one in model.opset_import]
    notes = [f"model {one.key}={one.value}" for one in model.metadata_props]
    graph = _OnnxGraph(notes)
    lines += graph.lines(model.graph)
    for function in sorted(model.functions, key=lambda one: (one.domain, one.name)):
        body = _OnnxGraph(notes)
        lines.append(f"function {function.domain}::{function.name}({', '.join(function.input)})")
        body.names = {name: name for name in function.input}
        lines += [f"  {line}" for node in function.node for line in body.node_lines(node)]
        lines.append(f"  return {', '.join(body.read(name) for name in function.output)}")
    return GraphText(lines, notes)


class _OnnxGraph:
    """One scope of values.

    Args:
        notes: Takes what explains the nodes.
        outer: The names of the values around it.
    """

    def __init__(self, notes: list[str], outer: Mapping[str, str] | None = None) -> None:
        self.names = dict(outer or {})
        self.notes = notes

    def lines(self, graph: onnx.GraphProto) -> Iterator[str]:
        """Yields a graph: its inputs, nodes and outputs."""
        for tensor in graph.initializer:
            self.names[tensor.name] = _weight(tensor)
        for value in graph.input:
            self.names[value.name] = value.name
            yield f"input {value.name}: {_type(value)}"
        for node in graph.node:
            yield from self.node_lines(node)
        for value in graph.output:
            yield f"output {value.name}: {_type(value)} = {self.read(value.name)}"

    def node_lines(self, node: onnx.NodeProto) -> Iterator[str]:
        """Yields a node, and the graphs in it behind."""
        read = ", ".join(self.read(name) for name in node.input)
        plain = {
            one.name: _attribute(one)
            for one in node.attribute
            if one.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        }
        made = [self._define(name) for name in node.output]
        options = ", ".join(f"{name}={plain[name]}" for name in sorted(plain))
        called = f"{node.domain or 'ai.onnx'}::{node.op_type}"
        yield f"{', '.join(made)} = {called}({read}) {{{options}}}"
        for one in node.attribute:
            if one.type == onnx.AttributeProto.GRAPH:
                yield f"  {one.name}:"
                inner = _OnnxGraph(self.notes, self.names)
                yield from (f"    {line}" for line in inner.lines(one.g))
        self.notes += [f"{made[0]} {one.key}={one.value}" for one in node.metadata_props]

    def read(self, name: str) -> str:
        """Returns the name of a value in the text."""
        return self.names.get(name, name) if name else "_"

    def _define(self, name: str) -> str:
        self.names[name] = f"v{len(self.names)}" if name else "_"
        return self.names[name]


def _weight(tensor: onnx.TensorProto) -> str:
    array = numpy_helper.to_array(tensor)
    shape = ",".join(map(str, array.shape))
    return f"{array.dtype}[{shape}] {_hash(array.tobytes())}"


def _type(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = [str(one.dim_param or one.dim_value) for one in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type)}[{','.join(sizes)}]"


def _attribute(attribute: onnx.AttributeProto) -> str:
    if attribute.ref_attr_name:
        return f"@{attribute.ref_attr_name}"
    value = helper.get_attribute_value(attribute)
    return _weight(value) if isinstance(value, onnx.TensorProto) else repr(value)


def openvino_text(path: Path) -> GraphText:
    """Writes an IR of OpenVINO and its weights as lines."""
    weights = path.with_suffix(".bin").read_bytes()
    net = ElementTree.parse(path).getroot()
    notes: list[str] = []
    return GraphText(list(_ir_lines(net, weights, notes)), notes)


def _ir_lines(net: ElementTree.Element, weights: bytes, notes: list[str]) -> Iterator[str]:
    """Yields the layers of a graph of an IR, in the order of the file."""
    layers = net.findall("layers/layer")
    places = {layer.get("id"): f"v{index}" for index, layer in enumerate(layers)}
    feeds: dict[tuple[str | None, int], str] = {}
    for edge in net.findall("edges/edge"):
        came = f"{places[edge.get('from-layer')]}.{edge.get('from-port')}"
        feeds[edge.get("to-layer"), int(edge.get("to-port", 0))] = came
    for layer in layers:
        data = layer.find("data")
        options: dict[str, Any] = {} if data is None else dict(data.attrib)
        if layer.get("type") == "Const":
            start, size = int(options.pop("offset")), int(options.pop("size"))
            options["value"] = _hash(weights[start : start + size])
        if layer.get("type") in ("Parameter", "Result"):
            options["name"] = layer.get("name")
        read = [feeds[key] for key in sorted(key for key in feeds if key[0] == layer.get("id"))]
        called = f"{layer.get('version')}::{layer.get('type')}"
        given = ", ".join(f"{name}={options[name]}" for name in sorted(options))
        made = " ".join(map(_port, layer.findall("output/port")))
        here = places[layer.get("id")]
        yield f"{here} {made} = {called}({', '.join(read)}) {{{given}}}"
        for kind in ("body", "then_body", "else_body"):
            for body in layer.findall(kind):
                yield f"  {kind}:"
                yield from (f"    {line}" for line in _ir_lines(body, weights, notes))
        for one in layer.findall("rt_info/attribute"):
            pairs = sorted(one.attrib.items())
            notes.append(f"{here} {' '.join(f'{name}={value}' for name, value in pairs)}")


def _port(port: ElementTree.Element) -> str:
    sizes = ",".join(dim.text or "" for dim in port.findall("dim"))
    return f"{port.get('precision')}[{sizes}]"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
