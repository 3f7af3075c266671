"""Asks the worker for a step; turns its death into an error with the node and line.

Conversions, builds and loads end in a ``BuildError``, runs in a ``RunError``.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.backends.backend import Backend
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.worker.cuts import Blamed, Outcome, deadly_node
from tokexport.exporter.worker.messages import Message
from tokexport.exporter.worker.process import (
    BUILD_SECONDS,
    RUN_SECONDS,
    VARIABLE,
    WORKER,
    WorkerDied,
    time_limit,
)
from tokexport.exporter.worker.steps import BUILT, LOADED, RUN
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.errors import BuildError, RunError, RuntimesError
from tokexport.runtimes.memory import FIX, lacking, lacks_memory

_DOING: Final = {
    BUILT: "building the model",
    LOADED: "loading the model",
    RUN: "running the model",
}
#: How long a cut of a model that did not end may take, at most.
_HANG_SECONDS: Final = 20.0
#: How many characters of the output of native code a message shows.
_TOLD: Final = 300


@dataclass(frozen=True)
class Cause:
    """The model that a step works on, for the search of the node that ends it.

    Attributes:
        backend: The target whose runtime is at work.
        until: How far it goes: ``BUILT``, ``LOADED`` or ``RUN``.
        model: The ONNX file that it is made from; None without one.
        arrays: What it runs on, or OpenVINO measures the ranges of int8 on.
        precision: What OpenVINO is to compute in.
        native: Whether the project's kernels run.
    """

    backend: Backend
    until: str
    model: Path | None = None
    arrays: Mapping[str, Array] = field(default_factory=dict)
    precision: str = "fp32"
    native: bool = True

    @property
    def limit_s(self) -> float:
        """The time limit of the step."""
        return time_limit(BUILD_SECONDS if self.until == BUILT else RUN_SECONDS)

    @property
    def is_searched(self) -> bool:
        """Whether cuts of the model can be tried: they have no engine's inputs."""
        engine_runs = not self.backend.runs_on_cpu and self.until != BUILT
        return self.model is not None and not engine_runs

    @property
    def searched_in(self) -> tuple[str, ...]:
        """The precisions to search in, in order."""
        return self.backend.searched_in.get(self.precision, (self.precision,))


def ask(
    step: str,
    fields: Mapping[str, Any],
    cause: Cause,
    arrays: Mapping[str, Array] | None = None,
) -> Message:
    """Asks the worker for a step.

    Args:
        step: A name in the table of ``steps.py``.
        fields: What it takes.
        cause: The model that it is at.
        arrays: The arrays that it takes.

    Raises:
        BuildError: The worker died or took too long, before a model ran.
        RunError: It did so in a run.
        Exception: What the step raised.
    """
    try:
        return WORKER.ask(step, fields, arrays, limit_s=cause.limit_s)
    except WorkerDied as end:
        died = end
    except MemoryError as error:
        what = lacking(cause.backend.title, _DOING[cause.until])
        raise _kind(cause)(what, where=str(error), fix=FIX) from error
    raise _error(cause, died, _blamed(cause, died))


def _blamed(cause: Cause, died: WorkerDied) -> Blamed:
    """Searches for the node; if that fails, the error says only how the step ended."""
    model, hung = cause.model, died.limit_s is not None
    if model is None or not cause.is_searched:
        return Blamed()
    limit_s = min(cause.limit_s, _HANG_SECONDS) if hung else cause.limit_s

    def try_cut(precision: str, path: Path) -> Outcome:
        with scratch_folder() as scratch:
            asked = {
                "backend": cause.backend.runtime,
                "until": cause.until,
                "model": str(path),
                "scratch": str(scratch),
                "precision": precision,
                "native": cause.native,
            }
            try:
                WORKER.ask("try", asked, cause.arrays, limit_s=limit_s)
            except WorkerDied as end:
                return Outcome.DIES if hung == (end.limit_s is not None) else Outcome.UNCLEAR
            except (RuntimesError, OSError, MemoryError):
                return Outcome.UNCLEAR
        return Outcome.LIVES

    for precision in cause.searched_in:
        with suppress(Exception), scratch_folder() as folder:
            if (found := deadly_node(model, folder, partial(try_cut, precision))).operator:
                return found
    return Blamed()


def _error(cause: Cause, died: WorkerDied, blamed: Blamed) -> BuildError | RunError:
    """Returns the error: how the step ended, at which node, and what to do."""
    said = " ".join(died.said.split())[-_TOLD:]
    parts = [str(blamed), f"The last that it printed: {said}" if said else ""]
    where = "\n".join(part for part in parts if part)
    what, fix = _what_and_fix(cause, died, blamed)
    return _kind(cause)(what, where=where, fix=fix, node=blamed.node, operator=blamed.operator)


def _kind(cause: Cause) -> type[BuildError | RunError]:
    return RunError if cause.until == RUN else BuildError


def _what_and_fix(cause: Cause, died: WorkerDied, blamed: Blamed) -> tuple[str, str]:
    name, doing = cause.backend.title, _DOING[cause.until]
    another = "Write the code of this node differently, or compile for another target."
    if not blamed.operator:
        another = f"Compile for another target, or with another version of {name}."
    if died.limit_s is not None:
        return (
            f"{name} did not end {doing} within {died.limit_s:g} s.",
            f"If it may take longer, set {VARIABLE} to more seconds. {another}",
        )
    if lacks_memory(died.said):
        return lacking(name, doing), FIX
    if died.code == -signal.SIGKILL:
        return f"{name} was ended {doing}, as a process is where memory runs out.", FIX
    if died.code < 0:
        number = signal.Signals(-died.code)
        return f"{name} died {doing}: {signal.strsignal(number)} ({number.name}).", another
    return f"{name} ended its process {doing}, with exit code {died.code}.", another
