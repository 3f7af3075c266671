"""Writes a lowered graph to disk and builds a target's artifact from it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

import onnx_ir as ir

from tokexport.exporter.inputs import Batches
from tokexport.runtimes.manifest import RuntimeInfo
from tokexport.runtimes.openvino import convert
from tokexport.runtimes.ort import OrtRunner
from tokexport.runtimes.trt import build_engine

#: A protobuf holds 2 GB at most; above this many bytes of weights they go into a file of their own.
EXTERNAL_DATA_BYTES = 1_800_000_000

#: The file that the runtime of a target loads.
ARTIFACT: Final = {"ort": "model.onnx", "openvino": "model.xml", "trt": "model.engine"}


def save_onnx(model: ir.Model, path: Path) -> None:
    """Writes an ONNX file; above ``EXTERNAL_DATA_BYTES`` its weights lie beside it, NAME.data."""
    weights = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    beside = f"{path.name}.data" if weights > EXTERNAL_DATA_BYTES else None
    ir.save(model, path, external_data=beside)


def build(
    target: str,
    lowered: Path,
    folder: Path,
    precision: str = "fp32",
    calibration: Batches | None = None,
) -> RuntimeInfo:
    """Builds the artifact of a target from its lowered ONNX file.

    Args:
        target: ``ort``, ``openvino`` or ``trt``.
        lowered: The ONNX file, called as the artifact of ``ort`` is, its external data beside it.
        folder: Where the artifact goes, under the name that ``ARTIFACT`` gives.
        precision: What it is to compute in, where the graph does not hold the types: for openvino.
        calibration: The samples that int8 for openvino measures its ranges on.

    Returns:
        What built it.
    """
    artifact = folder / ARTIFACT[target]
    match target:
        case "ort":
            shutil.copyfile(lowered, artifact)
            external = lowered.with_name(f"{lowered.name}.data")
            if external.exists():
                shutil.copyfile(external, folder / external.name)
            with OrtRunner.from_file(artifact) as runner:
                return runner.runtime
        case "openvino":
            return _build_openvino(lowered, artifact, precision, calibration)
        case _:
            return build_engine(lowered, artifact)


def _build_openvino(
    lowered: Path, artifact: Path, precision: str, calibration: Batches | None
) -> RuntimeInfo:
    """Converts, and narrows what is not of fp32 behind it."""
    if precision == "fp32":
        return convert(lowered, artifact)
    from tokexport.exporter import openvino_half, openvino_int8

    with tempfile.TemporaryDirectory(prefix="tokexport-") as folder:
        converted = Path(folder) / artifact.name
        runtime = convert(lowered, converted)
        if precision == "int8":
            assert calibration is not None
            openvino_int8.quantise(converted, artifact, calibration)
        else:
            openvino_half.keep_selection_wide(converted, artifact)
        return runtime
