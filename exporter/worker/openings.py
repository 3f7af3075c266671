"""Describes how to open a runner, in this process or in the worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from tokexport.exporter.backends.backend import Backend
from tokexport.exporter.backends.known import BACKENDS, backend_of
from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.input_checks import InputChecks
from tokexport.runtimes.bundle.manifest import Manifest, RuntimeInfo, TensorSpec
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.loading import open_runner
from tokexport.runtimes.openvino.runner import OpenVinoRunner
from tokexport.runtimes.ort.runner import OrtRunner


@dataclass(frozen=True)
class Opening:
    """A model file, or the folder of a bundle, and how it is opened.

    Attributes:
        path: An ``.onnx`` file, the ``.xml`` of an IR, or with a manifest the bundle's folder.
        manifest: That of the bundle; None where ``path`` is a model file.
        precision: What OpenVINO is to compute in; a manifest has its own.
        threads: Number of threads for a CPU runtime; None leaves the choice to the runtime.
        native: Whether the project's kernels run.
    """

    path: Path
    manifest: Manifest | None = None
    precision: str = "fp32"
    threads: int | None = None
    native: bool = True

    def open(self) -> Runner:
        """Opens the runner in this process; raises what ``runtimes.loading.open_runner`` does."""
        threads, native = self.threads, self.native
        if self.manifest is not None:
            return open_runner(self.path, self.manifest, threads=threads, native=native)
        if self.path.suffix == ".xml":
            return OpenVinoRunner.from_file(
                self.path, precision=self.precision, threads=threads, native=native
            )
        return OrtRunner.from_file(self.path, threads=threads, native=native)

    @property
    def backend(self) -> Backend:
        """The target whose runtime opens it."""
        if self.manifest is not None:
            return BACKENDS[self.manifest.runtime.name]
        return backend_of(self.path)

    @property
    def computes_in(self) -> str:
        """The precision that it is opened in."""
        return self.precision if self.manifest is None else self.manifest.precision

    def to_json(self) -> dict[str, Any]:
        """Returns what ``from_json`` takes."""
        return asdict(self) | {"path": str(self.path.absolute())}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Returns the opening that was described."""
        opening = cls(**{**data, "path": Path(data["path"])})
        if opening.manifest is None:
            return opening
        given = data["manifest"]
        read = {
            "runtime": RuntimeInfo(**given["runtime"]),
            "inputs": specs_of(given["inputs"]),
            "outputs": specs_of(given["outputs"]),
            "checks": InputChecks.from_json(given["checks"]),
            "input_ranges": {name: tuple(ends) for name, ends in given["input_ranges"].items()},
            "constant_inputs": tuple(map(ConstantInput.from_json, given["constant_inputs"])),
        }
        return replace(opening, manifest=Manifest(**{**given, **read}))


def specs_of(given: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    """Returns specs from JSON, whose lists are tuples here."""
    return tuple(TensorSpec(one["name"], tuple(one["shape"]), one["dtype"]) for one in given)
