"""Builds a target's artifact from its lowered graph."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from tokexport.exporter.backends.backend import Backend
from tokexport.exporter.build.precision import calibration_batches
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.worker.runner import build_in_worker
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import RuntimeInfo

#: The ONNX file that a bundle keeps where it is not the artifact.
KEPT_ONNX: Final = "lowered.onnx"


def keep_onnx(lowered: Path, folder: Path) -> str:
    """Copies the ONNX file of an artifact into its bundle, and returns its name there.

    Args:
        lowered: The file; weights beyond 2 GB lie beside it.
        folder: The bundle.
    """
    shutil.copyfile(lowered, folder / KEPT_ONNX)
    external = lowered.with_name(f"{lowered.name}.data")
    if external.exists():  # the model names it so
        shutil.copyfile(external, folder / external.name)
    return KEPT_ONNX


def build(
    backend: Backend,
    lowered: Path,
    folder: Path,
    precision: str = "fp32",
    calibration: Batches | None = None,
) -> RuntimeInfo:
    """Builds the artifact of a target from its lowered ONNX file, in the worker.

    Args:
        backend: The target.
        lowered: The ONNX file; external data lie beside it.
        folder: Where the artifact goes, under the name that the backend gives it.
        precision: What it is to compute in, where the graph does not hold the types.
        calibration: The samples that ranges are measured on, where the backend does that.

    Returns:
        What built it.
    """
    artifact = folder / backend.artifact
    if backend.runs_lowered:
        shutil.copyfile(lowered, artifact)
        external = lowered.with_name(f"{lowered.name}.data")
        if external.exists():
            shutil.copyfile(external, folder / external.name)
    samples: dict[str, Array] = {}
    if backend.calibrates(precision):
        assert calibration is not None
        count = sum(1 for _ in calibration_batches(calibration))
        samples = {name: array[:count] for name, array in calibration.arrays.items()}
    return build_in_worker(backend, lowered, artifact, precision, samples)
