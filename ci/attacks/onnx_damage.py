"""Damages the ONNX graph of a bundle, and keeps it a readable ONNX message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import onnx
from attacks.values import FRACTIONS, count, damaged, text
from attacks.wire import damage_message
from onnx import TensorProto, helper, numpy_helper

#: Operators of ONNX that take a graph, any number of inputs, make numbers or sizes of their own.
_OPERATORS: Final = (
    *("If", "Loop", "Scan", "SequenceMap", "SequenceConstruct", "SequenceAt", "Optional"),
    *("ConstantOfShape", "Range", "Expand", "Tile", "EyeLike", "RandomNormal", "OneHot", "NonZero"),
    *("Resize", "Pad", "Reshape", "GatherND", "Gather", "ScatterND", "ScatterElements", "TopK"),
    *("Slice", "Split", "Concat", "Transpose", "Conv", "ConvTranspose", "MaxPool", "AveragePool"),
    *("LSTM", "GRU", "Einsum", "MatMul", "Gemm", "MatMulInteger", "ConvInteger", "Cast"),
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "Unique"),
    *("TfIdfVectorizer", "StringNormalizer", "CategoryMapper", "LabelEncoder", "NonMaxSuppression"),
    *("RoiAlign", "GridSample", "DFT", "STFT", "MelWeightMatrix", "BlackmanWindow", "Compress"),
    *("BatchNormalization", "LayerNormalization", "Attention", "Col2Im", "DepthToSpace", "Shape"),
    *(
        "Identity",
        "Where",
        "CumSum",
        "Trilu",
        "Upsample",
        "MaxUnpool",
        "ReverseSequence",
        "Dropout",
    ),
)
_DOMAINS: Final = ("", "ai.onnx", "tokexport", "com.microsoft", "ai.onnx.ml", "ai.onnx.training")


def damage_onnx(random: Random, bundle: Path) -> str:
    """Damages the graph of a bundle; returns what was done."""
    path = bundle / "model.onnx"
    content = path.read_bytes()
    way = random.random()
    if way < 0.1:
        content, done = damaged(content, random)
    elif way < 0.45:
        content, done = damage_message(content, random)
    else:
        model = onnx.load_model_from_string(content)
        said = []
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            said.append(random.choice(_WAYS)(model, random, bundle))
        content, done = model.SerializeToString(), "; ".join(said)
    path.write_bytes(content)
    return f"model.onnx: {done}"


def _bodies(model: onnx.ModelProto) -> list[Any]:
    return [model.graph, *model.functions]


def _node(model: onnx.ModelProto, random: Random) -> tuple[Any, Any]:
    """Returns a body and a node of it."""
    body = model.graph if random.random() < 0.6 else random.choice(_bodies(model))
    if not body.node:
        body = model.graph
    if not body.node:
        body.node.append(helper.make_node("Identity", ["image"], ["other"]))
    return body, random.choice(body.node)


def _attribute(model: onnx.ModelProto, random: Random, bundle: Path) -> str:
    _, node = next(
        (found for found in (_node(model, random) for _ in range(20)) if found[1].attribute),
        _node(model, random),
    )
    if not node.attribute:
        node.attribute.append(helper.make_attribute(text(random) or "axis", count(random)))
        return f"{node.op_type} has one attribute more"
    one = random.choice(node.attribute)
    way = random.randrange(7)
    if way == 0:
        one.type = random.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 14))
        return f"{node.op_type}.{one.name} is of type {one.type}"
    if way == 1:
        one.name = text(random).encode("utf-8", "replace").decode()
        return f"an attribute of {node.op_type} is called {one.name!r:.40}"
    if way == 2:
        done = f"{node.op_type}.{one.name} is gone"
        node.attribute.remove(one)
        return done
    if one.type == onnx.AttributeProto.FLOAT:
        one.f = random.choice(FRACTIONS)
    elif one.type == onnx.AttributeProto.STRING:
        one.s = text(random).encode("utf-8", "surrogatepass")
    elif one.type == onnx.AttributeProto.INTS:
        values = [*one.ints] or [0]
        values[random.randrange(len(values))] = count(random)
        one.ints[:] = values if random.random() < 0.7 else values * random.choice((0, 2, 9))
    elif one.type == onnx.AttributeProto.TENSOR:
        return f"{node.op_type}.{one.name}: {_change_tensor(one.t, random)}"
    else:
        one.i = count(random)
    return f"{node.op_type}: {' '.join(str(one).split())[:60]}"


def _operator(model: onnx.ModelProto, random: Random, bundle: Path) -> str:
    _, node = _node(model, random)
    before = node.op_type
    if random.random() < 0.3:
        node.domain = random.choice(_DOMAINS)
        if random.random() < 0.5:
            model.opset_import.append(helper.make_opsetid(node.domain, random.choice((1, 2, 18))))
        return f"{before} is of domain {node.domain!r}"
    others = [one.op_type for body in _bodies(model) for one in body.node]
    node.op_type = random.choice(_OPERATORS if random.random() < 0.7 else others)
    if random.random() < 0.5:
        del node.attribute[:]
    return f"{before} is {node.op_type}"


def _wire(model: onnx.ModelProto, random: Random, bundle: Path) -> str:
    """Makes a node read or give another value."""
    body, node = _node(model, random)
    names = ["", "nowhere", *(name for one in body.node for name in (*one.input, *one.output))]
    side = node.input if random.random() < 0.7 else node.output
    if not side or random.random() < 0.2:
        side.append(random.choice(names))
        return f"{node.op_type} has {len(side)} of them"
    at = random.randrange(len(side))
    if random.random() < 0.2:
        del side[at]
        return f"{node.op_type} has one value fewer"
    before, side[at] = side[at], random.choice(names)
    return f"{node.op_type}: {before:.30} is {side[at]:.30}"


def _nodes(model: onnx.ModelProto, random: Random, bundle: Path) -> str:
    """Takes nodes away, doubles them, or changes their order."""
    body, node = _node(model, random)
    way = random.randrange(4)
    if way == 0:
        done = f"{node.op_type} is gone"
        body.node.remove(node)
        return done
    if way == 1:
        times = random.choice((1, 50, 3000))
        for at in range(times):
            body.node.add().CopyFrom(node)
            body.node[-1].output[:] = [f"{name}_{at}" for name in node.output]
        return f"{node.op_type} {times} times more"
    if way == 2:
        body.node.add().CopyFrom(node)
        return f"{node.op_type} gives the same twice"
    order = [*body.node]
    random.shuffle(order)
    del body.node[:]
    body.node.extend(order)
    return "the nodes in another order"


def _tensor(model: onnx.ModelProto, random: Random, bundle: Path) -> str:
    tensors = [*model.graph.initializer]
    tensors += [
        one.t
        for body in _bodies(model)
        for node in body.node
        for one in node.attribute
        if one.type == onnx.AttributeProto.TENSOR
    ]
    if not tensors:
        return "there is no tensor"
    tensor = random.choice(tensors)
    if random.random() < 0.25:
        return f"{tensor.name}: {_elsewhere(tensor, random, bundle)}"
    return f"{tensor.name}: {_change_tensor(tensor, random)}"


def _change_tensor(tensor: Any, random: Random) -> str:
    way = random.randrange(7)
    if way == 0:
        sizes = [*tensor.dims] or [1]
        sizes[random.randrange(len(sizes))] = count(random)
        tensor.dims[:] = sizes if random.random() < 0.6 else sizes[::-1]
        return f"of shape {[*tensor.dims]}"
    if way == 1:
        sizes = [*tensor.dims]
        sizes.insert(random.randrange(len(sizes) + 1), random.choice((0, 1, 2)))
        tensor.dims[:] = sizes
        return f"of shape {sizes}"
    if way == 2:
        tensor.data_type = random.choice((*range(0, 26), 99, -1))
        return f"of type {tensor.data_type}"
    if way == 3:
        tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
        return "half of it"
    if way == 4:
        tensor.raw_data = tensor.raw_data + random.randbytes(random.choice((1, 4, 4096)))
        return "more bytes than it has"
    array: Any = (
        numpy_helper.to_array(tensor).copy() if _is_whole(tensor) else np.zeros(1, np.float32)
    )
    if array.size and array.dtype.kind in "iu":
        information = np.iinfo(array.dtype)
        number = min(max(count(random), int(information.min)), int(information.max))
        array.flat[random.randrange(array.size)] = number
    elif array.size and array.dtype.kind == "f":
        array.flat[random.randrange(array.size)] = random.choice(FRACTIONS)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return "another number"


def _is_whole(tensor: Any) -> bool:
    try:
        return numpy_helper.to_array(tensor).dtype.kind in "iufb"
    except Exception:  # what an earlier change left is of any kind
        return False


def _elsewhere(tensor: Any, random: Random, bundle: Path) -> str:
    """Moves a tensor into a file."""
    place = random.choice(
        ("weights.bin", "model.onnx", "manifest.json", "../case/model.onnx", "/etc/hostname")
    )
    place = place if random.random() < 0.6 else text(random).encode("utf-8", "replace").decode()
    if place == "weights.bin":
        (bundle / place).write_bytes(tensor.raw_data)
    tensor.data_location = TensorProto.EXTERNAL
    if random.random() < 0.8:
        tensor.ClearField("raw_data")
    parts = [("location", place)]
    for key in ("offset", "length"):
        if random.random() < 0.5:
            parts.append((key, random.choice((str(count(random)), text(random)))))
    for key, said in parts:
        entry = tensor.external_data.add()
        entry.key, entry.value = key, said.encode("utf-8", "replace").decode()
    return f"in {place!r:.40}, {[key for key, _ in parts[1:]]}"


def _versions(model: onnx.ModelProto, random: Random, bundle: Path) -> str:
    if random.random() < 0.3:
        model.ir_version = random.choice((-1, 0, 1, 3, 8, 99, 2**62))
        return f"IR version {model.ir_version}"
    one = random.choice(model.opset_import)
    one.version = random.choice((-1, 0, 1, 6, 11, 13, 17, 22, 999, 2**62))
    return f"version {one.version} of {one.domain!r}"


def _border(model: onnx.ModelProto, random: Random, bundle: Path) -> str:
    """Changes an input, an output or what is said of a value between."""
    graph = model.graph
    side: Any = random.choice((graph.input, graph.output, graph.value_info))
    if not side:
        side = graph.output
    one = random.choice(side)
    way = random.randrange(6)
    if way == 0:
        one.type.tensor_type.elem_type = random.choice((*range(0, 26), 99))
    elif way == 1:
        sizes = one.type.tensor_type.shape.dim
        if sizes:
            random.choice(sizes).dim_value = count(random)
    elif way == 2:
        one.type.tensor_type.shape.dim.add().dim_param = text(random).encode("utf-8", "replace")
    elif way == 3:
        kind = onnx.TypeProto()
        for _ in range(random.choice((1, 90, 3000))):
            outer = onnx.TypeProto()
            outer.sequence_type.elem_type.CopyFrom(kind)
            kind = outer
            if kind.ByteSize() > 20_000:
                break
        one.type.CopyFrom(kind)
    elif way == 4:
        one.name = random.choice(("", "nowhere", text(random))).encode("utf-8", "replace").decode()
    else:
        side.add().CopyFrom(one)
    return f"what it says of {one.name!r:.40} ({way})"


def _functions(model: onnx.ModelProto, random: Random, bundle: Path) -> str:
    if not model.functions:
        return "there is no function"
    one = random.choice(model.functions)
    way = random.randrange(5)
    if way == 0:
        one.node.add().CopyFrom(helper.make_node(one.name, [*one.input], ["z"], domain=one.domain))
    elif way == 1:
        one.name = random.choice(("Add", "MatMul", "", "none"))
    elif way == 2:
        del one.input[:]
    elif way == 3:
        del one.output[:]
    else:
        one.domain = random.choice(_DOMAINS)
    return f"function {one.name} ({way})"


def _graph_within(model: onnx.ModelProto, random: Random, bundle: Path) -> str:
    """Puts a graph into an attribute of a node, deep in one another."""
    _, node = _node(model, random)
    graph = helper.make_graph([], "inner", [], [])
    levels = random.choice((1, 3, 90, 200))
    for _ in range(levels):
        inner = helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([inner], "inner", [], [])
        if graph.ByteSize() > 50_000:
            break
    node.op_type = random.choice(("If", "Loop", "Scan", node.op_type))
    node.domain = ""
    node.attribute.append(helper.make_attribute("body", graph))
    return f"{node.op_type} with {levels} graphs within"


def _large(model: onnx.ModelProto, random: Random, bundle: Path) -> str:
    """Puts a value of a huge shape in front of an output."""
    size = random.choice((2**20, 2**40, 2**62))
    name = model.graph.output[0].name if model.graph.output else "y"
    shape = helper.make_tensor("huge", TensorProto.INT64, [2], [size, random.choice((1, 8, 2**31))])
    kind = random.choice(("ConstantOfShape", "Expand", "Tile", "Reshape", "RandomNormal"))
    model.graph.initializer.append(shape)
    first = [] if kind in ("ConstantOfShape", "RandomNormal") else [name]
    given: dict[str, Any] = {"shape": [size, 8]} if kind == "RandomNormal" else {}
    inputs = [] if kind == "RandomNormal" else [*first, "huge"]
    model.graph.node.append(helper.make_node(kind, inputs, ["large"], **given))
    model.graph.node.append(helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", [name, "sum"], ["more"]))
    if model.graph.output:
        model.graph.output[0].name = "more" if random.random() < 0.5 else name
    return f"{kind} of {size} rows"


_WAYS: Final[tuple[Callable[[onnx.ModelProto, Random, Path], str], ...]] = (
    *(_attribute, _attribute, _attribute, _operator, _operator, _wire, _wire, _nodes, _tensor),
    *(_tensor, _tensor, _versions, _border, _border, _functions, _graph_within, _large),
)
