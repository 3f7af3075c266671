"""Opens what can be compared: a bundle, an ONNX file, an OpenVINO IR, or a source in eager.

All but a source need numpy and their runtime alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tokexport.exporter.config import ReduceConfig
from tokexport.exporter.errors import UsageError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.requirements import require_compile_packages
from tokexport.exporter.worker.openings import Opening
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.manifest import MANIFEST_NAME, TensorSpec
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.cores.free_cores import allowed_cores
from tokexport.runtimes.loading import load
from tokexport.runtimes.pictures.preprocessing import Preprocessing
from tokexport.runtimes.signatures import trusted_manifest
from tokexport.runtimes.verification import reference_inputs

if TYPE_CHECKING:
    from tokexport.exporter.source import SourceOptions

#: The kinds of sides.
BUNDLE: Final = "bundle"
ONNX: Final = "ONNX"
IR: Final = "OpenVINO IR"
SOURCE: Final = "source"
#: Stands in a shape for a size that a file leaves open.
ANY_SIZE: Final = -1
_FILES: Final = {".onnx": ONNX, ".xml": IR}


@dataclass(frozen=True)
class SideInfo:
    """What one side of a comparison is.

    Attributes:
        name: The file, folder or name that it was asked for by.
        kind: ``bundle``, ``ONNX``, ``OpenVINO IR`` or ``source``.
        runs_on: The runtime and its version.
        precision: What it computes in.
    """

    name: str
    kind: str
    runs_on: str
    precision: str

    def __str__(self) -> str:
        """Returns the name and what runs it: ``model.onnx (ONNX, onnxruntime-cpu 1.23, fp32)``."""
        return f"{self.name} ({self.kind}, {self.runs_on}, {self.precision})"


class Side(ABC):
    """One of the two that are compared.

    Attributes:
        info: What it is.
        inputs: What it takes; the first size of a shape is the batch.
        constants: Inputs that it holds the value of.
        preprocessing: How a picture becomes its input, as a source says it or as a manifest holds
            it; None where it does not.
        other_batches: How many samples a bundle's other artifacts take at once, which are not run.
    """

    info: SideInfo
    inputs: tuple[TensorSpec, ...]
    constants: tuple[ConstantInput, ...] = ()
    preprocessing: Preprocessing | Mapping[str, Any] | None = None
    other_batches: tuple[int, ...] = ()

    @abstractmethod
    def answers(self, batches: Batches) -> dict[str, Array]:
        """Returns every output on every batch, (batches, …) by name."""

    def own_inputs(self) -> dict[str, Array] | None:
        """Returns inputs that came with it, (batches, …) by name; None without any."""
        return None


class RunnerSide(Side):
    """A bundle, an ONNX file or an IR, run by its runtime.

    Args:
        path: The bundle's folder, or the file.
        kind: Which of them.
        precision: What OpenVINO computes an IR in; a bundle says its own.
        threads: Number of threads; None leaves the choice to the runtime.

    Attributes:
        bundle: The bundle's folder; None of a file.

    Raises:
        tokexport.runtimes.errors.RuntimesError: It is damaged, or does not load here.
    """

    def __init__(
        self, path: Path, kind: str, *, precision: str = "fp32", threads: int | None = None
    ) -> None:
        self.bundle = path if kind == BUNDLE else None
        self._runner: Runner
        if kind == BUNDLE:
            manifest = trusted_manifest(path)
            precision, self.preprocessing = manifest.precision, manifest.preprocessing
            self.other_batches = tuple(one.batch for one in manifest.ladder[1:])
            self._runner = load(path, threads=threads or allowed_cores(), batches=[manifest.batch])
        else:
            self._runner = Opening(path, precision=precision, threads=threads).open()
        runtime = self._runner.runtime
        self.info = SideInfo(str(path), kind, f"{runtime.flavour} {runtime.version}", precision)
        self.inputs, self.constants = self._runner.inputs, self._runner.constants

    def answers(self, batches: Batches) -> dict[str, Array]:
        """Returns every output on every batch, (batches, …) by name."""
        rows = [self._runner.run(batch) for batch in batches]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def own_inputs(self) -> dict[str, Array] | None:
        """Returns the inputs of a bundle's reference data."""
        return None if self.bundle is None else reference_inputs(self.bundle)

    def close(self) -> None:
        """Frees what the runtime holds."""
        self._runner.close()


class SourceSide(Side):
    """A model in eager PyTorch, in fp32, with a reduction in it where one is given.

    Args:
        options: Names the model.
        config: Its inputs, and its reduction.
        like: The inputs of the other side, every size known; they are its examples where it has
            none.
        preprocessing: How a picture becomes its input, where the source does not say it.

    Raises:
        PackageMissingError: torch is not installed.
        SourceError: The source is not found, or it is no model.
        UsageError: Nothing says which inputs the model takes.
    """

    def __init__(
        self,
        options: SourceOptions,
        config: ReduceConfig,
        like: tuple[TensorSpec, ...] = (),
        preprocessing: Preprocessing | None = None,
    ) -> None:
        require_compile_packages()
        import torch

        from tokexport.exporter.comparison.source_examples import with_examples
        from tokexport.exporter.eager.example_inputs import constants_of, prepare
        from tokexport.exporter.reduction.reduced_source import reduced_source
        from tokexport.exporter.source import load_source

        source = load_source(options)
        source = replace(source, preprocessing=source.preprocessing or preprocessing)
        if like and config.input_shape is None:
            source = with_examples(source, like)
            if len(like) == 1 and not (source.example_args or source.example_kwargs):
                config = replace(config, input_shape=like[0].shape)
        if config.reduce is not None:
            source = reduced_source(source, config).source
        self._model, self.inputs, self.drawn = prepare(source, config)
        self.constants, self.preprocessing = constants_of(self._model), source.preprocessing
        version = torch.__version__.partition("+")[0]
        self.info = SideInfo(options.source, SOURCE, f"eager torch {version}", "fp32")

    def decision_agreement(
        self, bundle: Path, batches: Batches, threads: int | None
    ) -> float | None:
        """Returns the share of what it decides that a bundle decides too; None if not known."""
        from tokexport.exporter.comparison.source_agreement import decision_agreement

        return decision_agreement(bundle, self._model, batches, threads)

    def answers(self, batches: Batches) -> dict[str, Array]:
        """Returns every output on every batch, (batches, …) by name."""
        from tokexport.exporter.eager.reference import run_reference

        return run_reference(self._model, batches, twice=False).outputs


def kind_of(name: str) -> str:
    """Returns what a name stands for: a bundle's folder, a file by its suffix, else a source.

    Raises:
        UsageError: A file of that suffix does not exist.
    """
    path = Path(name)
    if (path / MANIFEST_NAME).is_file():
        return BUNDLE
    kind = _FILES.get(path.suffix, SOURCE)
    if kind != SOURCE and not path.is_file():
        raise UsageError(
            "The file does not exist.",
            where=name,
            fix="Pass a bundle, an .onnx file, the .xml of an IR, or a source as compile takes it.",
        )
    return kind
