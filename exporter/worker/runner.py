"""Opens models in the worker, where their first load and first run may fail.

What is timed runs in this process: ``here`` opens it anew, once it has run in the worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.backends.backend import Backend
from tokexport.exporter.backends.known import BACKENDS, REFERENCE
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.worker.asking import Cause, ask
from tokexport.exporter.worker.openings import Opening, specs_of
from tokexport.exporter.worker.process import RUN_SECONDS, WORKER, WorkerDied
from tokexport.exporter.worker.steps import BUILT, LOADED, RUN
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import Manifest, RuntimeInfo
from tokexport.runtimes.bundle.runner import Runner

_NUMBERS: Final = count()


class WorkerRunner(Runner):
    """Runs a model in the worker.

    Args:
        opening: The model.
        onnx: The ONNX file that it was built from, for the search of a node that it dies of; an
            ONNX model needs none.

    Raises:
        BuildError: The runtime cannot load it, or died.
        Exception: Whatever else ``Opening.open`` raises.
    """

    def __init__(self, opening: Opening, onnx: Path | None = None) -> None:
        if onnx is None and opening.path.suffix == ".onnx":
            onnx = opening.path
        self._opening, self._onnx = opening, onnx
        self._question: dict[str, Any] = {"runner": next(_NUMBERS), "opening": opening.to_json()}
        self._local: Runner | None = None
        self._has_run = False
        found = ask("open", self._question, self._cause(LOADED)).fields
        super().__init__(
            specs_of(found["inputs"]), specs_of(found["outputs"]), RuntimeInfo(**found["runtime"])
        )

    def opened_here(self) -> Runner:
        """Returns a runner of the same model in this process; it is closed with this one."""
        assert self._has_run, "a model is opened here once it has run in the worker"
        if self._local is None:
            self._let_go()
            self._local = self._opening.open()
        return self._local

    def _run_impl(self, arrays: dict[str, Array]) -> dict[str, Array]:
        answer = ask("run", self._question, self._cause(RUN, arrays), arrays)
        self._has_run = True
        return dict(answer.arrays)

    def _close_impl(self) -> None:
        if self._local is not None:
            self._local.close()
        self._let_go()

    def _let_go(self) -> None:
        """Closes what the worker holds, where there is one."""
        if not WORKER.lives():
            return
        try:
            WORKER.ask("close", self._question, limit_s=RUN_SECONDS)
        except WorkerDied:  # nothing is held any more
            return

    def _cause(self, until: str, arrays: dict[str, Array] | None = None) -> Cause:
        opening = self._opening
        precision, native = opening.computes_in, opening.native
        return Cause(opening.backend, until, self._onnx, arrays or {}, precision, native)


def open_in_worker(
    bundle: Path,
    manifest: Manifest,
    *,
    onnx: Path,
    threads: int | None = None,
    native: bool = True,
) -> Runner:
    """Makes the runner of an artifact that was just built; see ``runtimes.loading.open_runner``.

    Args:
        bundle: The folder.
        manifest: What it holds.
        onnx: The ONNX file that the artifact was built from.
        threads: Number of threads for a CPU runtime; None leaves the choice to the runtime.
        native: Whether the project's kernels run.
    """
    return WorkerRunner(Opening(bundle, manifest, threads=threads, native=native), onnx)


def start_in_worker(
    bundle: Path,
    manifest: Manifest,
    arrays: dict[str, Array],
    *,
    onnx: Path,
    threads: int | None = None,
) -> Mapping[str, Any]:
    """Loads an artifact anew in the worker, runs it once, and returns what that took.

    Args:
        bundle: The folder.
        manifest: What it holds.
        arrays: The inputs of the run.
        onnx: The ONNX file that the artifact was built from.
        threads: Number of threads for a CPU runtime; None leaves the choice to the runtime.

    Returns:
        ``load_ms`` and ``first_run_ms``, in milliseconds, and ``memory_bytes``, which may be None.
    """
    opening = Opening(bundle, manifest, threads=threads)
    cause = Cause(opening.backend, RUN, onnx, arrays, opening.computes_in, opening.native)
    return ask("start", {"opening": opening.to_json()}, cause, arrays).fields


def here(runner: Runner) -> Runner:
    """Returns the runner in this process, for timing."""
    return runner.opened_here() if isinstance(runner, WorkerRunner) else runner


def build_in_worker(
    backend: Backend,
    lowered: Path,
    artifact: Path,
    precision: str,
    calibration: dict[str, Array],
) -> RuntimeInfo:
    """Builds an artifact in the worker; see ``Backend.build``."""
    with scratch_folder() as scratch:
        asked = {
            "backend": backend.runtime,
            "lowered": str(lowered.absolute()),
            "artifact": str(artifact.absolute()),
            "precision": precision,
            "scratch": str(scratch),
        }
        until = LOADED if backend.runs_lowered else BUILT
        sample = {name: array[0, ...] for name, array in calibration.items()}
        cause = Cause(backend, until, lowered, sample, precision)
        return RuntimeInfo(**ask("build", asked, cause, calibration).fields)


def convert_in_worker(model: Path, artifact: Path) -> None:
    """Converts ONNX to OpenVINO's IR in the worker; see ``runtimes.openvino.runner.convert``."""
    asked = {"model": str(model.absolute()), "artifact": str(artifact.absolute())}
    ask("convert", asked, Cause(BACKENDS["openvino"], BUILT, model))


def optimise_in_worker(model: Path, output: Path, *, heads: int, hidden: int) -> None:
    """Optimises an ONNX file in the worker; see ``runtimes.ort.optimizer.optimise_vit``."""
    with scratch_folder() as scratch:
        asked: dict[str, Any] = {"model": str(model.absolute()), "artifact": str(output.absolute())}
        asked |= {"heads": heads, "hidden": hidden, "scratch": str(scratch)}
        ask("optimise", asked, Cause(REFERENCE, BUILT))
