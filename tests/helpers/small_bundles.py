"""Makes bundles of one product by hand, in no time: with any batch, and with checks on inputs."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tokexport.runtimes.bundle.input_checks import InputCheck, InputChecks
from tokexport.runtimes.bundle.manifest import Manifest, RuntimeInfo, TensorSpec

WIDTH, CLASSES, LARGEST = 3, 5, 4.0
WEIGHT = np.arange(WIDTH * CLASSES, dtype=np.float32).reshape(WIDTH, CLASSES) / 7


def save_product(path: Path, batch: int) -> None:
    """Saves y = x @ WEIGHT + shift, and whether all of x are below LARGEST.

    Args:
        path: The ONNX file.
        batch: The samples of x (batch, WIDTH); shift (batch, 1) is of whole numbers.
    """
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Cast", ["shift"], ["shifted"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["product", "shifted"], ["y"]),
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Less", ["most", "limit"], ["below"]),
            helper.make_node("Reshape", ["below", "one"], ["holds"]),
        ],
        "product",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, WIDTH]),
            helper.make_tensor_value_info("shift", TensorProto.INT64, [batch, 1]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, CLASSES]),
            helper.make_tensor_value_info("holds", TensorProto.BOOL, [1]),
        ],
        [
            numpy_helper.from_array(WEIGHT, "w"),
            numpy_helper.from_array(np.float32(LARGEST), "limit"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)


def product_bundle(bundle: Path, batch: int) -> Path:
    """Makes a bundle of it, whose manifest holds x to the check and shift to 0 … 9."""
    bundle.mkdir()
    save_product(bundle / "model.onnx", batch)
    digest = hashlib.sha256((bundle / "model.onnx").read_bytes()).hexdigest()
    Manifest(
        schema_version=1,
        tokexport_version="0.1.0",
        created=datetime(2026, 1, 2, tzinfo=UTC).isoformat(),
        target="ort",
        status="PASSED",
        artifact="model.onnx",
        runtime=RuntimeInfo("ort", "onnxruntime-cpu", "1.32.0"),
        precision="fp32",
        inputs=(
            TensorSpec("x", (batch, WIDTH), "float32"),
            TensorSpec("shift", (batch, 1), "int64"),
        ),
        outputs=(TensorSpec("y", (batch, CLASSES), "float32"),),
        constant_outputs={},
        token_schedule=(),
        gates={},
        source={"kind": "module", "location": "Product", "sha256": "0" * 64},
        preprocessing=None,
        files={"model.onnx": digest},
        input_ranges={"shift": (0, 9)},
        checks=InputChecks("holds", (InputCheck("room", "x is too large", "model.py:1"),)),
    ).write(bundle)
    return bundle
