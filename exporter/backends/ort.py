"""ONNX Runtime on the CPU: the lowered ONNX file itself is what it loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tokexport.exporter.backends.backend import PROFILED_RUNS, Backend

if TYPE_CHECKING:
    from tokexport.graph_passes.onnx_passes.every_target.choose_forms import TokenCall
    from tokexport.runtimes.arrays import Array
    from tokexport.runtimes.bundle.manifest import RuntimeInfo
    from tokexport.runtimes.native_library import Kernels
    from tokexport.runtimes.node_times import NodeTime


class OnnxRuntime(Backend):
    """Loads the lowered ONNX file itself in ONNX Runtime on the CPU."""

    name = "ort"
    runtime = "ort"
    title = "ONNX Runtime"
    package = "onnxruntime"
    artifact = "model.onnx"
    precisions = ("fp32", "int8")
    quantizations = ("dynamic", "static")
    runs_lowered = True

    def arithmetic_in_graph(self, precision: str) -> bool:
        """Returns whether the precision is int8: lowering makes the linears integers."""
        return precision == "int8"

    def build(
        self,
        lowered: Path,
        artifact: Path,
        precision: str,
        scratch: Path,
        calibration: Mapping[str, Array],
    ) -> RuntimeInfo:
        """Loads the lowered file, which is the artifact; see ``Backend.build``."""
        from tokexport.runtimes.ort.runner import OrtRunner

        with OrtRunner.from_file(artifact) as runner:
            return runner.runtime

    def place_ladder(self, places: Mapping[Path, Path]) -> None:
        """Writes the artifacts anew, with one file of weights; see ``Backend.place_ladder``."""
        from tokexport.exporter.shared_weights.onnx_files import share_onnx_weights

        share_onnx_weights(places)

    def node_times(
        self, artifact: Path, arrays: Mapping[str, Array], precision: str, threads: int | None
    ) -> tuple[NodeTime, ...] | None:
        """Returns the medians of ONNX Runtime's own profile; see ``Backend.node_times``."""
        from tokexport.runtimes.ort.node_times import node_times

        return node_times(artifact, arrays, PROFILED_RUNS, threads)

    def import_runtime(self) -> None:
        """Imports ONNX Runtime."""
        from tokexport.runtimes.importing import import_runtime

        import_runtime("onnxruntime", extra="ort")

    def has_kernel(self, call: TokenCall) -> bool:
        """Returns True: each call of a token operator has a kernel."""
        return True

    def kernels(self) -> Kernels:
        """Returns the kernels in the library of custom operators."""
        from tokexport.runtimes.native_library import ort_kernels

        return ort_kernels()
