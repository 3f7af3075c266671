"""Small ONNX models as text, for the tests of ONNX passes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import parser

from tokexport.runtimes.trt.engine import build_engine

Arrays = dict[str, np.ndarray]


def parsed(inputs: str, outputs: str, body: str) -> ir.Model:
    """Returns the model of one graph in ONNX's text form, its shapes inferred."""
    text = f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return ir.from_proto(onnx.shape_inference.infer_shapes(parser.parse_model(text)))


def operators(model: ir.Model) -> Counter[str]:
    """Counts the operators of a model, constants left out."""
    return Counter(n.op_type for n in model.graph.all_nodes() if n.op_type != "Constant")


def answers(model: ir.Model, arrays: Arrays) -> list[np.ndarray]:
    """Runs a model in ONNX Runtime."""
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, arrays)
    return found


def assert_tensorrt_builds(model: ir.Model, folder: Path) -> None:
    """Builds an engine of a model."""
    path = folder / "model.onnx"
    ir.save(model, path)
    build_engine(path, folder / "model.engine")
    assert (folder / "model.engine").stat().st_size > 1000
