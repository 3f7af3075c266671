"""What an ONNX file may hold before a runtime sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tokexport.runtimes.files.onnx_contents import ContentsError, onnx_contents

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])


def model_of(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "graph", [X], [Y], list(weights))
    return helper.make_model(graph, functions=list(functions))


def function(name: str, *callees: str) -> onnx.FunctionProto:
    """A function that calls others, one after another."""
    values = ["x", *(f"v{i}" for i in range(1, len(callees))), "y"]
    nodes = [
        helper.make_node(
            callee, [values[i]], [values[i + 1]], domain="" if callee == "Relu" else "f"
        )
        for i, callee in enumerate(callees)
    ]
    return helper.make_function("f", name, ["x"], ["y"], nodes, [helper.make_opsetid("", 18)])


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def weight(**changes: object) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    for name, value in changes.items():
        if name == "dims":
            tensor.dims[:] = value
        else:
            setattr(tensor, name, value)
    return tensor


def elsewhere(location: str, **changes: object) -> onnx.TensorProto:
    tensor = weight(raw_data=b"", data_location=TensorProto.EXTERNAL, **changes)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def test_it_tells_operators_and_files(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(24))
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"], domain="ai.onnx"),
        helper.make_node("twice", ["a"], ["y"], domain="f"),
    ]
    tensors = [weight(), elsewhere("w.bin"), numpy_helper.from_array(np.zeros((0, 9)), "none")]
    model = model_of(nodes, tensors, [function("twice", "Relu", "Relu")])
    found = onnx_contents(saved(model, tmp_path))
    assert found.operators == {"Add", "f:twice", "Relu"}
    assert found.files == {"w.bin"}


@pytest.mark.parametrize(("read", "given"), [("x", "y"), ("x, x", "y, y1"), ("x, ", "y")])
def test_a_call_of_a_function_has_the_values_that_it_takes(
    read: str, given: str, tmp_path: Path
) -> None:
    adds = helper.make_node("Add", ["a", "b"], ["c"])
    sums = helper.make_function("f", "sum", ["a", "b"], ["c"], [adds], [])
    node = helper.make_node("sum", read.split(", "), given.split(", "), domain="f")
    with pytest.raises(ContentsError, match="'sum' is called with other values than it takes"):
        onnx_contents(saved(model_of([node], functions=[sums]), tmp_path))
    node = helper.make_node("sum", ["x", "x"], ["y"], domain="f")
    onnx_contents(saved(model_of([node], functions=[sums]), tmp_path))


def body() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "body", [X], [Y])


REFUSED = {
    "a loop": (model_of([helper.make_node("Loop", ["", "", "x"], ["y"], body=body())]), "graph"),
    "a branch": (
        model_of([helper.make_node("If", ["x"], ["y"], then_branch=body(), else_branch=body())]),
        "a graph of its own",
    ),
    "graphs": (model_of([helper.make_node("Any", ["x"], ["y"], these=[body()])]), "a graph"),
    "a loop in a function": (
        model_of(
            [],
            functions=[
                helper.make_function(
                    "f",
                    "g",
                    ["x"],
                    ["y"],
                    [helper.make_node("Scan", ["x"], ["y"], body=body())],
                    [],
                )
            ],
        ),
        "a graph of its own",
    ),
    "a function of itself": (model_of([], functions=[function("g", "g")]), "calls itself"),
    "functions in a ring": (
        model_of([], functions=[function("g", "h"), function("h", "k"), function("k", "g")]),
        "calls itself",
    ),
    "a function twice": (
        model_of([], functions=[function("g", "Relu"), function("g", "Relu")]),
        "stands twice",
    ),
    "functions that multiply": (
        model_of(
            [helper.make_node("f9", ["x"], ["y"], domain="f")],
            functions=[
                function("f0", "Relu"),
                *(function(f"f{i}", *[f"f{i - 1}"] * 10) for i in range(1, 10)),
            ],
        ),
        "more than 200,000 nodes",
    ),
    "a huge tensor": (model_of([], [weight(dims=[2**40])]), "more numbers than it has bytes"),
    "sizes that wrap": (model_of([], [weight(dims=[2**32, 2**32])]), "than memory holds"),
    "a negative size": (model_of([], [weight(dims=[-1, 3])]), "negative size"),
    "weights that are not there": (model_of([], [elsewhere("none.bin")]), "its file of weights"),
    "weights without a name": (model_of([], [elsewhere("")]), "without a name"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_artifact_holds_is_refused(kind: str, tmp_path: Path) -> None:
    model, said = REFUSED[kind]
    with pytest.raises(ContentsError, match=said):
        onnx_contents(saved(model, tmp_path))


def test_a_huge_tensor_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(24))
    with pytest.raises(ContentsError, match="more numbers than it has bytes"):
        onnx_contents(saved(model_of([], [elsewhere("w.bin", dims=[2**40])]), tmp_path))


def test_a_tensor_in_an_attribute(tmp_path: Path) -> None:
    node = helper.make_node("Constant", [], ["y"], value=weight(dims=[2**40]))
    with pytest.raises(ContentsError, match="more numbers than it has bytes"):
        onnx_contents(saved(model_of([node]), tmp_path))


@pytest.mark.parametrize("content", [b"", b"text", b"\x08", b"\xff" * 100, b"\x3a\x05ab", b"\x0b"])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ContentsError, match="it is empty|no ONNX file|0 graphs"):
        onnx_contents(tmp_path / "model.onnx")


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    nodes = [helper.make_node("g", ["x"], ["y"], domain="f")]
    whole = saved(model_of(nodes, [weight()], [function("g", "Relu")]), tmp_path).read_bytes()
    random, refused = Random(0), 0
    for _ in range(500):
        content = bytearray(whole)
        for _ in range(random.choice((1, 2, 8))):
            content[random.randrange(len(content))] = random.randrange(256)
        if random.random() < 0.3:
            del content[random.randrange(len(content)) :]
        (tmp_path / "damaged.onnx").write_bytes(content)
        try:
            onnx_contents(tmp_path / "damaged.onnx")
        except ContentsError:
            refused += 1
    assert 100 < refused < 500
