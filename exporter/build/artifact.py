"""Builds a target's artifact from its lowered graph."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from tokexport.exporter.build.calibration import calibration_batches
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.worker.runner import build_in_worker
from tokexport.runtimes.base import Array
from tokexport.runtimes.manifest import RuntimeInfo

#: The file that the runtime of a target loads.
ARTIFACT: Final = {"ort": "model.onnx", "openvino": "model.xml", "trt": "model.engine"}


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
        assert calibration is not None
        count = sum(1 for _ in calibration_batches(calibration))
        samples = {name: array[:count] for name, array in calibration.arrays.items()}
    return build_in_worker(target, lowered, artifact, precision, samples)
