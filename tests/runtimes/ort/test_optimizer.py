from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from tokexport.runtimes.errors import BuildError
from tokexport.runtimes.ort.optimizer import optimise_vit
from tokexport.runtimes.ort.runner import OrtRunner

#: Gelu by Erf, as it was exported before there was an operator for it.
ERF_GELU = """<ir_version: 10, opset_import: ["" : 17]> g (float[2,4] x) => (float[2,4] y) {
    root = Constant <value = float {1.4142135}> () half = Constant <value = float {0.5}> ()
    one = Constant <value = float {1.0}> ()
    a = Div (x, root) b = Erf (a) c = Add (b, one) d = Mul (x, c) y = Mul (d, half) }"""


def test_it_fuses_and_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given, output = tmp_path / "given.onnx", tmp_path / "optimised.onnx"
    onnx.save(parser.parse_model(ERF_GELU), given)
    optimise_vit(given, output)
    assert capfd.readouterr() == ("", "")
    assert Counter(node.op_type for node in onnx.load(output).graph.node) == {"Gelu": 1}
    x = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)
    with OrtRunner.from_file(given) as one, OrtRunner.from_file(output) as other:
        np.testing.assert_allclose(other.run({"x": x})["y"], one.run({"x": x})["y"], atol=1e-6)


def test_what_it_cannot_read_is_a_build_error(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"no model")
    with pytest.raises(BuildError, match="The optimizer failed"):
        optimise_vit(tmp_path / "junk.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
