"""Lists the targets; the only place that looks a target up by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tokexport.exporter.backends.backend import Backend
from tokexport.exporter.backends.openvino import OpenVino
from tokexport.exporter.backends.ort import OnnxRuntime
from tokexport.exporter.backends.trt import TensorRt

#: The target whose runtime also runs the ONNX stages of every other target.
REFERENCE: Final[Backend] = OnnxRuntime()
BACKENDS: Final[dict[str, Backend]] = {
    backend.name: backend for backend in (REFERENCE, OpenVino(), TensorRt())
}


def backend_of(artifact: Path) -> Backend:
    """Returns the backend whose runtime loads a file, by its suffix."""
    return next(
        backend for backend in BACKENDS.values() if Path(backend.artifact).suffix == artifact.suffix
    )
