"""A graph that is cut at known values keeps an error at the node that makes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from tokexport.exporter.graph_values.given_values import (
    computed_values,
    give,
    maker_of,
    operator_of,
    part_for,
)
from tokexport.exporter.graph_values.run_model import exposed_values, run_each
from tokexport.exporter.graph_values.shown_values import OnnxArtifact
from tokexport.runtimes.bundle.manifest import TensorSpec

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[2, 3] x) => (float[2, 3] z)
<float[3] w = {1, 2, 3}>
{
   a = Add (x, w)
   y = Mul (a, a)
   z = Neg (y)
}
"""
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def model() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(TEXT))


def test_a_given_value_reaches_its_readers_and_is_computed_beside() -> None:
    cut = model()
    wrong = np.zeros((2, 3), np.float32)
    named = give(cut, {"a": wrong, "nothing": wrong})
    assert named == {"a": "a.given"}
    (found,) = run_each(cut, [{"x": X, "a.given": wrong}])
    assert np.array_equal(found["z"], np.zeros((2, 3)))


def test_a_value_of_another_shape_or_with_nan_is_not_given() -> None:
    assert give(model(), {"z": np.zeros((3, 2), np.float32)}) == {}
    assert give(model(), {"a": np.full((2, 3), np.nan, np.float32)}) == {}


def test_a_part_takes_what_is_known_before_it() -> None:
    part = part_for(model(), ["z"], {"y": X})
    assert (part.outputs, part.sources, part.nodes) == (("z",), {"y": "y"}, part.nodes)
    assert len(part.nodes) == 1
    assert not part.model.graph.initializers
    (found,) = run_each(part.model, [part.fed({"y": X})])
    assert np.array_equal(found["z"], -X)


def test_every_value_is_exposed(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ir.save(model(), path)
    (found,) = exposed_values(path, [{"x": X}])
    assert [*computed_values(model())] == ["a", "y", "z"]
    assert np.array_equal(found["y"], (X + [1, 2, 3]) ** 2)
    assert operator_of(maker_of(model(), "y")) == "Mul"


def test_an_artifact_shows_one_more_output_and_takes_one_more_input(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ir.save(model(), path)
    artifact = OnnxArtifact(path, "fp32")
    assert artifact.shapes["a"] in ((2, 3), None)
    assert artifact.read_for("z") == ["y"]
    shown = artifact.show("a", [{"x": X}])
    assert np.array_equal(shown.value[0], X + [1, 2, 3])
    assert {*shown.outputs[0]} == {"z"}
    (tmp_path / "given").mkdir()
    written = artifact.write(tmp_path / "given", ["a"], {"y": TensorSpec("fed", (2, 3), "float32")})
    with artifact.opened(written) as runner:
        found = runner.run({"x": X, "fed": X})
    assert np.array_equal(found["z"], -X)
