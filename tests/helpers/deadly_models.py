"""Small ONNX files that native code dies of, or does not come to an end with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tokexport.graph_passes.onnx_passes.graph.source_lines import STACK_TRACE

X = np.arange(40, dtype=np.float32).reshape(2, 5, 4)
TRACE = 'File "/home/model.py", line 12, in forward\n    return x.gather(1, rows)'


def model_of(nodes: list[onnx.NodeProto], **weights: np.ndarray) -> onnx.ModelProto:
    """Returns a model of x (2, 5, 4) → y."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 3)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return model


def saved(folder: Path, nodes: list[onnx.NodeProto], **weights: np.ndarray) -> Path:
    """Writes such a model and returns the file."""
    path = folder / "model.onnx"
    onnx.save(model_of(nodes, **weights), path)
    return path


def gather_of_no_rows(folder: Path) -> Path:
    """What OpenVINO's front end dies of: a constant index (2, 0, 1)."""
    rows = helper.make_node("GatherND", ["a", "index"], ["b"], name="rows", batch_dims=1)
    rows.metadata_props.add(key=STACK_TRACE, value=TRACE)
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        rows,
        helper.make_node("Concat", ["a", "b"], ["c"], name="join", axis=1),
        helper.make_node("Neg", ["c"], ["y"], name="last"),
    ]
    return saved(folder, nodes, index=np.zeros((2, 0, 1), np.int64))


def row_that_is_not_there(folder: Path) -> Path:
    """What OpenVINO dies of as it runs, where x holds numbers beyond 1 as int8's samples may."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="curve"),
        helper.make_node("MatMul", ["b", "w"], ["c"], name="second"),
        helper.make_node("MatMul", ["c", "w"], ["d"], name="third"),
        helper.make_node("Cast", ["x"], ["e"], name="whole", to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["e", "axis"], ["f"], name="apart"),
        helper.make_node("GatherND", ["x", "f"], ["g"], name="rows"),
        helper.make_node("ReduceSum", ["g"], ["h"], name="sum"),
        helper.make_node("Add", ["d", "h"], ["y"], name="last"),
    ]
    return saved(folder, nodes, axis=np.array([3]), w=np.eye(4, dtype=np.float32))


def endless(folder: Path) -> Path:
    """Writes a loop that ends after 2⁶² rounds."""
    path = folder / "model.onnx"
    onnx.save(endless_model(), path)
    return path


def endless_model() -> onnx.ModelProto:
    """Returns a loop that ends after 2⁶² rounds."""
    inner = [TensorProto.FLOAT, X.shape]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still_on"]),
            helper.make_node("Neg", ["before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", *inner),
        ],
        [
            helper.make_tensor_value_info("still_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", *inner),
        ],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Loop", ["rounds", "", "a"], ["b"], name="for ever", body=body),
        helper.make_node("Neg", ["b"], ["y"], name="last"),
    ]
    return model_of(nodes, rounds=np.array(2**62))
