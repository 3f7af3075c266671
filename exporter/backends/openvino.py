"""OpenVINO on the CPU: the lowered ONNX is converted to its IR, and narrowed or quantised there."""

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


class OpenVino(Backend):
    """Converts the lowered ONNX to OpenVINO's IR, and narrows or quantises it there."""

    name = "openvino"
    runtime = "openvino"
    title = "OpenVINO"
    package = "openvino"
    artifact = "model.xml"
    precisions = ("fp32", "bf16", "fp16", "int8")
    plain_precisions = ("fp32", "bf16", "fp16")
    quantizations = ("static",)
    #: The ranges of int8 are measured on samples, which no bundle holds.
    rebuilds = ("fp32", "bf16", "fp16")
    refuses_everywhere = True
    tells_attentions = True
    #: A node that ends the process before quantisation ends it in fp32 too.
    searched_in = {"int8": ("fp32", "int8")}
    fp16_advice = (
        "Where the processor has no fp16, OpenVINO computes in bf16: try --precision bf16, "
        "whose gate is wider"
    )

    def calibrates(self, precision: str) -> bool:
        """Returns whether the precision is int8: the build measures the ranges of the IR."""
        return precision == "int8"

    def build(
        self,
        lowered: Path,
        artifact: Path,
        precision: str,
        scratch: Path,
        calibration: Mapping[str, Array],
    ) -> RuntimeInfo:
        """Converts and quantises the graph, decisions in float32; see ``Backend.build``."""
        from tokexport.runtimes.openvino.runner import convert

        if precision == "fp32":
            return convert(lowered, artifact)
        converted = scratch / artifact.name
        runtime = convert(lowered, converted)
        from tokexport.exporter.openvino_graph.half import keep_selection_wide

        if precision == "int8":
            from tokexport.exporter.openvino_graph.int8 import quantise

            count = len(next(iter(calibration.values())))
            samples = [
                {name: array[i, ...] for name, array in calibration.items()} for i in range(count)
            ]
            converted = scratch / f"int8-{artifact.name}"
            quantise(scratch / artifact.name, converted, samples)
        keep_selection_wide(converted, artifact)
        return runtime

    def place_ladder(self, places: Mapping[Path, Path]) -> None:
        """Writes the artifacts anew, with one file of weights; see ``Backend.place_ladder``."""
        from tokexport.exporter.shared_weights.ir_files import share_ir_weights

        share_ir_weights(places)

    def node_times(
        self, artifact: Path, arrays: Mapping[str, Array], precision: str, threads: int | None
    ) -> tuple[NodeTime, ...] | None:
        """Returns the medians of OpenVINO's performance counters; see ``Backend.node_times``."""
        from tokexport.runtimes.openvino.runner import OpenVinoRunner

        opened = OpenVinoRunner.from_file(
            artifact, precision=precision, threads=threads, profile=True
        )
        with opened as runner:
            return runner.node_times(dict(arrays), PROFILED_RUNS)

    def import_runtime(self) -> None:
        """Imports OpenVINO."""
        from tokexport.runtimes.openvino.runner import import_openvino

        import_openvino()

    def has_kernel(self, call: TokenCall) -> bool:
        """Returns whether all indices of a call are computed: kernels take no constant ones."""
        from tokexport.graph_passes.ops.onnx_functions import signatures

        inputs = signatures()[call.operator].inputs
        return all(inputs[position][1] != "I" for position in call.constant)

    def kernels(self) -> Kernels:
        """Returns the kernels in the extension for the installed version."""
        from tokexport.runtimes.openvino.runner import found_kernels

        return found_kernels()
