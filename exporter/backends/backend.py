"""What a target is to the stages of a compile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from onnx_ir.passes import PassBase

    from tokexport.graph_passes.onnx_passes.common.choose_forms import Forms, TokenCall
    from tokexport.graph_passes.pipelines import Arithmetic
    from tokexport.runtimes.arrays import Array
    from tokexport.runtimes.bundle.manifest import RuntimeInfo


class Backend(ABC):
    """A target: what its graphs are lowered by, what builds them and what it can compute in.

    Attributes:
        name: What it is called where a target is asked for, and in manifests.
        runtime: The backend whose ``build`` the worker runs, and what manifests call the runtime.
        title: What its runtime is called in a sentence.
        package: The package whose version measurements are of.
        artifact: The file that its runtime loads; the suffix is its own.
        precisions: What it can compute in, fp32 first.
        plain_precisions: What a graph of fp32 is computed in, by itself or when asked to.
        quantizations: How int8 may find the ranges of activations, the usual way first.
        runs_lowered: Whether the lowered ONNX file itself is the artifact.
        narrows_lowered: Whether the types of a half precision are in the lowered graph already.
        runs_on_cpu: Whether every machine runs it; else only one with a device.
        tunes: Whether the forms of token operators can be measured for it.
        refuses_everywhere: Whether an operator refused at one node is refused at all.
        searched_in: By precision, those in which a node that ends the runtime is searched first.
        tells_attentions: Whether an opened artifact names the attentions that it fused.
        fp16_advice: What to try where fp16 leaves its gate; '' where it has none.
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
    narrows_lowered: ClassVar[bool] = False
    runs_on_cpu: ClassVar[bool] = True
    tunes: ClassVar[bool] = True
    refuses_everywhere: ClassVar[bool] = False
    searched_in: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    tells_attentions: ClassVar[bool] = False
    fp16_advice: ClassVar[str] = ""

    def lowering(self, arithmetic: Arithmetic, forms: Forms | None = None) -> tuple[PassBase, ...]:
        """Returns the passes from the emitted graph to what is built from, in order."""
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
            precision: What it is to compute in, where the graph does not hold the types.
            scratch: A folder for what goes away.
            calibration: The samples (batches, …) that ranges are measured on, by the input's name.
        """

    def import_runtime(self) -> None:
        """Imports the runtime ahead of the first question that needs it."""
        return

    def has_kernel(self, call: TokenCall) -> bool:
        """Returns whether a native kernel can give a call of a token operator."""
        return False

    def kernels(self) -> Path | None:
        """Returns the library of native kernels that will run; None where none will."""
        return None
