"""ONNX Runtime on the CPU: the lowered ONNX file itself is what it loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tokexport.exporter.backends.backend import Backend

if TYPE_CHECKING:
    from tokexport.graph_passes.onnx_passes.common.choose_forms import TokenCall
    from tokexport.runtimes.arrays import Array
    from tokexport.runtimes.bundle.manifest import RuntimeInfo


class OnnxRuntime(Backend):
    """See the module."""

    name = "ort"
    runtime = "ort"
    title = "ONNX Runtime"
    package = "onnxruntime"
    artifact = "model.onnx"
    precisions = ("fp32", "int8")
    quantizations = ("dynamic", "static")
    runs_lowered = True

    def arithmetic_in_graph(self, precision: str) -> bool:
        """Returns whether it is int8: linears become integers while the graph is lowered."""
        return precision == "int8"

    def build(
        self,
        lowered: Path,
        artifact: Path,
        precision: str,
        scratch: Path,
        calibration: Mapping[str, Array],
    ) -> RuntimeInfo:
        """Loads the artifact, which is there already; see ``Backend.build``."""
        from tokexport.runtimes.ort.runner import OrtRunner

        with OrtRunner.from_file(artifact) as runner:
            return runner.runtime

    def import_runtime(self) -> None:
        """Imports ONNX Runtime."""
        from tokexport.runtimes.importing import import_runtime

        import_runtime("onnxruntime", extra="ort")

    def has_kernel(self, call: TokenCall) -> bool:
        """Tells that there is one for each call."""
        return True

    def kernels(self) -> Path | None:
        """Returns the library of custom operators, where there is one and it is wanted."""
        from tokexport.runtimes.native_library import native_library

        return native_library()
