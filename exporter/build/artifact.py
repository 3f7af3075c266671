"""Writes a lowered graph to disk and builds a target's artifact from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import onnx_ir as ir

from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.worker.runner import build_in_worker
from tokexport.runtimes.base import Array
from tokexport.runtimes.manifest import RuntimeInfo

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
    """Builds the artifact of a target from its lowered ONNX file, in the worker.

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
    if target == "ort":
        shutil.copyfile(lowered, artifact)
        external = lowered.with_name(f"{lowered.name}.data")
        if external.exists():
            shutil.copyfile(external, folder / external.name)
    samples: dict[str, Array] = {}
    if (target, precision) == ("openvino", "int8"):
        from tokexport.exporter.build.calibration import calibration_batches

        assert calibration is not None
        count = sum(1 for _ in calibration_batches(calibration))
        samples = {name: array[:count] for name, array in calibration.arrays.items()}
    return build_in_worker(target, lowered, artifact, precision, samples)
