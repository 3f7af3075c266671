"""TensorRT and TensorRT-RTX: an engine is built anywhere, and runs on a GPU alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tokexport.exporter.backends.backend import Backend

if TYPE_CHECKING:
    from tokexport.runtimes.arrays import Array
    from tokexport.runtimes.bundle.manifest import RuntimeInfo


class TensorRt(Backend):
    """Builds an engine on any machine; a machine with a GPU runs it."""

    name = "trt"
    runtime = "trt"
    title = "TensorRT"
    package = "tensorrt"
    artifact = "model.engine"
    precisions = ("fp32", "fp16", "bf16")
    narrows_lowered = True
    keeps_onnx = True
    rebuilds = precisions
    runs_on_cpu = False
    #: It times its own kernels when it builds an engine.
    tunes = False
    fp16_advice = (
        "Numbers beyond 65504 are infinite in fp16: try --precision bf16, which holds them and "
        "has a wider gate"
    )

    def build(
        self,
        lowered: Path,
        artifact: Path,
        precision: str,
        scratch: Path,
        calibration: Mapping[str, Array],
    ) -> RuntimeInfo:
        """Builds an engine; see ``Backend.build``."""
        from tokexport.runtimes.trt.engine import build_engine

        return build_engine(lowered, artifact)
