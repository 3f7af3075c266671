"""Makes bundles of one product by hand, in no time: with any batch, and with checks on inputs."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tokexport.runtimes.bundle.input_checks import InputCheck, InputChecks
from tokexport.runtimes.bundle.manifest import Manifest, Rung, RuntimeInfo, TensorSpec

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


def _save_ir(path: Path, batch: int) -> None:
    """Saves the same for OpenVINO; the weights go into model.bin, whatever the batch."""
    import openvino

    save_product(onnx_file := path.with_suffix(".onnx"), batch)
    openvino.save_model(openvino.Core().read_model(onnx_file), path, compress_to_fp16=False)
    onnx_file.unlink()
    path.with_suffix(".bin").replace(path.with_name("model.bin"))


def product_bundle(bundle: Path, batch: int, *more: int, target: str = "ort") -> Path:
    """Makes a bundle of it, whose manifest holds x to the check and shift to 0 … 9.

    Args:
        bundle: Its folder.
        batch: The samples that its first artifact takes at once.
        more: Those of further artifacts; for OpenVINO they share the weights of the first.
        target: ``ort`` or ``openvino``.
    """
    bundle.mkdir()
    ending = ".onnx" if target == "ort" else ".xml"
    names = {batch: f"model{ending}", **{size: f"model.batch{size}{ending}" for size in more}}
    for size, name in names.items():
        (save_product if target == "ort" else _save_ir)(bundle / name, size)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in bundle.iterdir()}
    flavour = "onnxruntime-cpu" if target == "ort" else "openvino-cpu"
    Manifest(
        schema_version=1,
        tokexport_version="0.1.0",
        created=datetime(2026, 1, 2, tzinfo=UTC).isoformat(),
        target=target,
        status="PASSED",
        artifact=names[batch],
        runtime=RuntimeInfo(target, flavour, "1.32.0"),
        precision="fp32",
        inputs=_inputs(batch),
        outputs=_outputs(batch),
        constant_outputs={},
        token_schedule=(),
        gates={},
        source={"kind": "module", "location": "Product", "sha256": "0" * 64},
        preprocessing=None,
        files=hashes,
        input_ranges=_RANGES,
        checks=_CHECKS,
        samples_independent=True,
        rungs=tuple(
            Rung(
                artifact=names[size],
                reference=f"reference-b{size}.npz",
                inputs=_inputs(size),
                outputs=_outputs(size),
                gates={},
                input_ranges=_RANGES,
                checks=_CHECKS,
            )
            for size in more
        ),
    ).write(bundle)
    return bundle


def _inputs(batch: int) -> tuple[TensorSpec, ...]:
    return TensorSpec("x", (batch, WIDTH), "float32"), TensorSpec("shift", (batch, 1), "int64")


def _outputs(batch: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("y", (batch, CLASSES), "float32"),)


_RANGES = {"shift": (0, 9)}
_CHECKS = InputChecks("holds", (InputCheck("room", "x is too large", "model.py:1"),))
