"""The times of the nodes of a model, as the runtimes' own profiles say them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from tokexport.runtimes.node_times import NodeTime, medians
from tokexport.runtimes.openvino.runner import OpenVinoRunner, convert
from tokexport.runtimes.ort.node_times import node_times

X = {"x": np.ones((4, 8), np.float32)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """X (4, 8) → y (4, 4): a product and a softmax, by name."""
    made = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "small (float[4, 8] x) => (float[4, 4] y) {"
        "  t = Transpose<perm = [1, 0]>(x)"
        "  p = MatMul(x, t)"
        "  y = Softmax(p)"
        "}"
    )
    for node in made.graph.node:
        node.name = f"node_{node.output[0]}"
    path = tmp_path_factory.mktemp("small") / "model.onnx"
    onnx.save(made, path)
    return path


def test_a_node_that_ran_twice_in_a_run_has_both_times() -> None:
    runs = [[("a", 1.0), ("b", 4.0), ("a", 2.0)], [("a", 5.0), ("b", 6.0)], [("b", 5.0)]]
    assert medians(runs) == (NodeTime("a", 4.0), NodeTime("b", 5.0))


def test_onnx_runtime_names_its_nodes_in_order(model: Path) -> None:
    found = node_times(model, {**X, "another": np.zeros(1)}, runs=3, threads=1)
    assert found[-1].name == "node_y"
    assert {one.name.partition("/")[0] for one in found} <= {"node_t", "node_p", "node_y"}
    assert all(one.ms >= 0 for one in found)
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def test_openvino_names_its_nodes(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "model.xml")
    with OpenVinoRunner.from_file(tmp_path / "model.xml", threads=1, profile=True) as runner:
        found = runner.node_times(X, runs=3)
    assert any("node_p" in one.name for one in found)
    assert all(one.ms >= 0 for one in found)
