"""Operators that TensorRT has for matrices only get a row; others stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers.graphs import checked, emitted, lowered
from helpers.onnx_graphs import answers, assert_tensorrt_builds, operators, parsed
from torch import Tensor

from tokexport.graph_passes.onnx_passes.graph.source_lines import STACK_TRACE
from tokexport.graph_passes.onnx_passes.targets.widen_vectors import WidenVectors
from tokexport.runtimes.errors import OperatorRefusedError
from tokexport.runtimes.trt.engine import build_engine

K = "k = Constant <value_ints = [4]> ()"
VECTORS = {
    "ArgMax": ("int64 y", "y = ArgMax <axis = 0, keepdims = 0> (x)"),
    "ArgMax, kept": ("int64[1] y", "y = ArgMax <axis = -1, keepdims = 1> (x)"),
    "ArgMax, the last": (
        "int64 y",
        "r = Round (x) y = ArgMax <axis = 0, keepdims = 0, select_last_index = 1> (r)",
    ),
    "ArgMin": ("int64 y", "y = ArgMin <keepdims = 0> (x)"),
    "TopK": ("float[4] v, int64[4] y", f"{K} v, y = TopK <axis = 0> (x, k)"),
    "TopK, the least": (
        "float[4] v, int64[4] y",
        f"{K} v, y = TopK <axis = -1, largest = 0, sorted = 1> (x, k)",
    ),
    "Softmax": ("float[9] y", "y = Softmax <axis = 0> (x)"),
    "Softmax, by default": ("float[9] y", "y = Softmax (x)"),
    "LogSoftmax": ("float[9] y", "y = LogSoftmax <axis = 0> (x)"),
    "Hardmax": ("float[9] y", "y = Hardmax <axis = 0> (x)"),
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_becomes_a_row_and_answers_the_same(name: str, tmp_path: Path) -> None:
    operator = name.partition(",")[0]
    model = parsed("float[9] x", *VECTORS[name])
    x = np.random.default_rng(0).standard_normal(9).astype(np.float32)
    wanted = answers(model, {"x": x})
    assert WidenVectors()(model).modified
    assert operators(model)[operator] == operators(model)["Unsqueeze"] == 1
    for found, before in zip(answers(model, {"x": x}), wanted, strict=True):
        assert found.shape == before.shape
        np.testing.assert_allclose(found, before, rtol=0, atol=1e-6)
    assert_tensorrt_builds(model, tmp_path)
    assert not WidenVectors()(model).modified


def test_tensorrt_refuses_the_vector_itself(tmp_path: Path) -> None:
    ir.save(parsed("float[9] x", *VECTORS["ArgMax"]), tmp_path / "model.onnx")
    with pytest.raises(OperatorRefusedError, match="ArgMax"):
        build_engine(tmp_path / "model.onnx", tmp_path / "model.engine")


OTHERS = {
    "a matrix": parsed("float[9,3] x", "int64[3] y", "y = ArgMax <axis = 0, keepdims = 0> (x)"),
    "another operator": parsed("float[9] x", "float y", "y = ReduceMax <keepdims = 0> (x)"),
    "an own operator": parsed("float[9] x", "float[9] y", "y = SoftmaxOfMine (x)"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_tensorrt_takes_stays(name: str) -> None:
    before = ir.to_proto(OTHERS[name]).SerializeToString()
    assert not WidenVectors()(OTHERS[name]).modified
    assert ir.to_proto(OTHERS[name]).SerializeToString() == before


def test_a_vector_of_unknown_rank_stays() -> None:
    model = parsed("float[9] x", *VECTORS["ArgMax"])
    model.graph.inputs[0].shape = None
    assert not WidenVectors()(model).modified


def test_the_line_is_kept() -> None:
    model = parsed("float[9] x", *VECTORS["TopK"])
    for node in model.graph:
        node.metadata_props[STACK_TRACE] = "here"
    WidenVectors()(model)
    assert {node.metadata_props.get(STACK_TRACE) for node in model.graph} == {"here"}


def test_a_greedy_choice_builds_for_tensorrt(tmp_path: Path) -> None:
    def function(x: Tensor) -> Tensor:
        distance = 1 - x @ x.T
        chosen = [distance.sum(dim=1).argmax(keepdim=True)]
        nearest = distance[chosen[0]][0]
        for _ in range(3):
            chosen.append(nearest.argmax(keepdim=True))
            nearest = torch.minimum(nearest, distance[chosen[-1]][0])
        return x[torch.cat(chosen)]

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    rewritten = checked(function, x / x.norm(dim=-1, keepdim=True), targets=("ort", "trt"))
    assert_tensorrt_builds(lowered(emitted(rewritten), "trt"), tmp_path)
