"""The targets there are; a name is looked up here, and compared nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tokexport.exporter.backends.backend import Backend
from tokexport.exporter.backends.openvino import OpenVino
from tokexport.exporter.backends.ort import OnnxRuntime
from tokexport.exporter.backends.trt import TensorRt

#: The one whose runtime also runs what stands before an artifact.
REFERENCE: Final[Backend] = OnnxRuntime()
BACKENDS: Final[dict[str, Backend]] = {
    backend.name: backend for backend in (REFERENCE, OpenVino(), TensorRt())
}


def backend_of(artifact: Path) -> Backend:
    """Returns the backend whose runtime loads a file, by its suffix."""
    return next(
        backend for backend in BACKENDS.values() if Path(backend.artifact).suffix == artifact.suffix
    )
