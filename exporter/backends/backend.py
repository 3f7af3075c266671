"""Declares what every target provides to the stages of a compile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from onnx_ir.passes import PassBase

    from tokexport.graph_passes.onnx_passes.every_target.choose_forms import Forms, TokenCall
    from tokexport.graph_passes.pipelines import Arithmetic
    from tokexport.runtimes.arrays import Array
    from tokexport.runtimes.bundle.manifest import RuntimeInfo
    from tokexport.runtimes.native_library import Kernels
    from tokexport.runtimes.node_times import NodeTime

#: How many runs the times of an artifact's nodes are medians of.
PROFILED_RUNS: Final = 7


class Backend(ABC):
    """A target: the passes that lower a graph, what builds it, and the precisions it has.

    Attributes:
        name: Its name on the command line and in manifests.
        runtime: The backend whose ``build`` the worker runs, and what manifests call the runtime.
        title: What its runtime is called in a sentence.
        package: The package whose version measurements are of.
        artifact: The file that its runtime loads; the suffix is its own.
        precisions: The precisions that it can compute in, fp32 first.
        plain_precisions: The precisions in which it can run an fp32 graph.
        quantizations: How int8 may find the ranges of activations, the default first.
        runs_lowered: Whether the lowered ONNX file itself is the artifact.
        keeps_onnx: Whether a bundle keeps that file by default: the artifact fits few machines.
        rebuilds: The precisions in which the artifact can be built anew from that file alone.
        narrows_lowered: Whether the types of a half precision are in the lowered graph already.
        runs_on_cpu: Whether every machine runs it; else only one with a device.
        tunes: Whether the forms of token operators can be measured for it.
        refuses_everywhere: Whether an operator refused at one node is refused at all.
        searched_in: By precision, those in which a node that ends the runtime is searched first.
        tells_attentions: Whether an opened artifact names the attentions that it fused.
        fp16_advice: What to try where fp16 fails its gate; '' for no advice.
    """

    name: ClassVar[str]
    runtime: ClassVar[str]
    title: ClassVar[str]
    package: ClassVar[str]
    artifact: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    plain_precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    quantizations: ClassVar[tuple[str, ...]] = ()
    runs_lowered: ClassVar[bool] = False
    keeps_onnx: ClassVar[bool] = False
    rebuilds: ClassVar[tuple[str, ...]] = ()
    narrows_lowered: ClassVar[bool] = False
    runs_on_cpu: ClassVar[bool] = True
    tunes: ClassVar[bool] = True
    refuses_everywhere: ClassVar[bool] = False
    searched_in: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    tells_attentions: ClassVar[bool] = False
    fp16_advice: ClassVar[str] = ""

    def lowering(self, arithmetic: Arithmetic, forms: Forms | None = None) -> tuple[PassBase, ...]:
        """Returns the passes that lower the emitted graph, in order."""
        from tokexport.graph_passes import pipelines

        return pipelines.lowering(self.name, arithmetic, forms)

    def arithmetic_in_graph(self, precision: str) -> bool:
        """Returns whether integers of that precision are in the lowered graph already."""
        return False

    def calibrates(self, precision: str) -> bool:
        """Returns whether a build measures ranges on samples."""
        return False

    @abstractmethod
    def build(
        self,
        lowered: Path,
        artifact: Path,
        precision: str,
        scratch: Path,
        calibration: Mapping[str, Array],
    ) -> RuntimeInfo:
        """Builds an artifact in the worker.

        Args:
            lowered: The ONNX file.
            artifact: The file to write; where ``runs_lowered``, to load.
            precision: The precision to compute in, where the types in the graph do not say it.
            scratch: A folder for temporary files.
            calibration: The samples (batches, …) that ranges are measured on, by the input's name.
        """

    def place_ladder(self, places: Mapping[Path, Path]) -> None:
        """Moves artifacts for several batches to their last names; their weights become one file.

        Args:
            places: Where each artifact goes, by where it is, the first of the bundle first; all go
                into one folder.
        """
        for source, target in places.items():
            source.rename(target)

    def node_times(
        self, artifact: Path, arrays: Mapping[str, Array], precision: str, threads: int | None
    ) -> tuple[NodeTime, ...] | None:
        """Returns what each node of an artifact takes here, in order; None where nothing says it.

        Args:
            artifact: The file that the runtime loads.
            arrays: The inputs of a run, by name; it may hold more than the artifact takes.
            precision: The precision that it computes in.
            threads: The most threads; None leaves it to the runtime.
        """
        return None

    def import_runtime(self) -> None:
        """Imports the runtime ahead of the first question that needs it."""
        return

    def has_kernel(self, call: TokenCall) -> bool:
        """Returns whether a native kernel can give a call of a token operator."""
        return False

    def kernels(self) -> Kernels:
        """Returns the native kernels that will run, or why those that are there will not."""
        from tokexport.runtimes.native_library import Kernels

        return Kernels()
