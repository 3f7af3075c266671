"""Small ONNX models and bundles of them, made with onnx.helper."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tokexport.runtimes.bundle.bundle_files import hash_file
from tokexport.runtimes.bundle.manifest import (
    SCHEMA_VERSION,
    Manifest,
    RuntimeInfo,
    TensorSpec,
)

ModelSaver = Callable[..., Path]


def value(name: str, shape: Sequence[int | str] | None, dtype: int = TensorProto.FLOAT) -> Any:
    """A ValueInfoProto, float32 unless said."""
    return helper.make_tensor_value_info(name, dtype, shape)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    weights: dict[str, np.ndarray] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 18,
) -> onnx.ModelProto:
    """A model whose nodes may come from the domains tokexport and custom, too."""
    initializers = [numpy_helper.from_array(w, name) for name, w in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), initializers)
    domains = {"": opset, "tokexport": 1, "custom": 1}
    return helper.make_model(
        graph,
        functions=list(functions),
        opset_imports=[helper.make_opsetid(name, version) for name, version in domains.items()],
        ir_version=10,
    )


def twice_function() -> onnx.FunctionProto:
    """The model-local function tokexport.twice(x) = x + x."""
    return helper.make_function(
        "tokexport",
        "twice",
        ["x"],
        ["y"],
        [helper.make_node("Add", ["x", "x"], ["y"], name="twice_add")],
        [helper.make_opsetid("", 18)],
    )


def classifier(weight: np.ndarray) -> onnx.ModelProto:
    """X (2, 8) to logits = relu(x w) (2, C) and label = argmax (2,), int64."""
    classes = weight.shape[1]
    return make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="head"),
            helper.make_node("Relu", ["product"], ["logits"], name="activation"),
            helper.make_node("ArgMax", ["logits"], ["label"], name="decide", axis=1, keepdims=0),
        ],
        [value("x", [2, 8])],
        [value("logits", [2, classes]), value("label", [2], TensorProto.INT64)],
        weights={"w": weight},
    )


@pytest.fixture
def save_model(tmp_path: Path) -> ModelSaver:
    """Builds a model of nodes, inputs, outputs (see make_model) and saves it under a name."""

    def save(*parts: Any, name: str = "model.onnx", external: str = "", **options: Any) -> Path:
        path = tmp_path / name
        model = parts[0] if isinstance(parts[0], onnx.ModelProto) else make_model(*parts, **options)
        if external:
            onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=0)
        else:
            onnx.save(model, path)
        return path

    return save


@pytest.fixture
def classifier_model(weight: np.ndarray) -> onnx.ModelProto:
    """See classifier; its weight is the fixture of that name."""
    return classifier(weight)


@pytest.fixture
def weight() -> np.ndarray:
    """A float32 matrix, (8, 5)."""
    return np.random.default_rng(7).standard_normal((8, 5), dtype=np.float32)


@pytest.fixture
def refused_model() -> onnx.ModelProto:
    """A scatter that adds: TensorRT takes no reduction; its node is named merge_sum."""
    return make_model(
        [
            helper.make_node("Relu", ["x"], ["r"], name="before"),
            helper.make_node(
                "ScatterElements", ["r", "i", "u"], ["y"], name="merge_sum", axis=1, reduction="add"
            ),
        ],
        [value("x", [1, 4, 8]), value("i", [1, 2, 8], TensorProto.INT64), value("u", [1, 2, 8])],
        [value("y", [1, 4, 8])],
    )


@pytest.fixture
def function_model() -> onnx.ModelProto:
    """X (1, 4, 8) to y = relu(twice(x w)), the twice being a model-local function."""
    weight = np.random.default_rng(3).standard_normal((8, 8), dtype=np.float32)
    return make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="project"),
            helper.make_node("twice", ["product"], ["t"], name="double", domain="tokexport"),
            helper.make_node("Relu", ["t"], ["y"], name="activation"),
        ],
        [value("x", [1, 4, 8])],
        [value("y", [1, 4, 8])],
        weights={"w": weight},
        functions=[twice_function()],
    )


BundleMaker = Callable[..., Path]


@pytest.fixture
def make_bundle(tmp_path: Path, weight: np.ndarray) -> BundleMaker:
    """Writes a whole bundle of the classifier for ONNX Runtime; keywords replace its fields."""

    def make(
        *,
        name: str = "bundle",
        error: float = 0.0,
        artifact: Path | None = None,
        **fields: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if artifact is None:
            onnx.save(classifier(weight), folder / "model.onnx")
        else:
            for file in artifact.parent.glob(f"{artifact.stem}.*"):
                (folder / file.name).write_bytes(file.read_bytes())
        x = np.random.default_rng(1).standard_normal((3, 2, 8), dtype=np.float32)
        logits = np.maximum(x @ weight, 0) + np.float32(error)
        np.savez(
            folder / "reference.npz",
            **{"inputs/x": x, "outputs/logits": logits, "outputs/label": logits.argmax(-1)},
        )
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            tokexport_version="0.1.0",
            created="2025-01-02T03:04:05+00:00",
            target="ort",
            status="PASSED",
            artifact="model.onnx" if artifact is None else artifact.name,
            runtime=RuntimeInfo("ort", "onnxruntime-cpu", "1.22.0"),
            precision="fp32",
            inputs=(TensorSpec("x", (2, 8), "float32"),),
            outputs=(
                TensorSpec("logits", (2, 5), "float32"),
                TensorSpec("label", (2,), "int64"),
            ),
            constant_outputs={"flops": 80.0},
            token_schedule=(197, 184),
            gates={
                "logits": {"relative_tolerance": 1e-5, "scale": float(np.abs(logits).max())},
                "label": {"relative_tolerance": 0.0, "scale": 1.0},
            },
            source={"kind": "factory", "location": "models:tiny", "sha256": "0" * 64},
            preprocessing={"mean": [0.5], "std": [0.25]},
            files={file.name: hash_file(file) for file in sorted(folder.iterdir())},
        )
        dataclasses.replace(manifest, **fields).write(folder)
        return folder

    return make


@pytest.fixture
def run_python() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a program in a fresh interpreter in which warnings are errors."""

    def run(program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run
