"""Defines the runner: one interface to every runtime, numpy arrays in and out.

A runner is ready when it is made, and is closed by ``close`` or at the end of a ``with``::

    with load("bundle") as runner:
        logits = runner.run({"pixels": images})["logits"]

``run`` answers now, ``submit`` later, in the order of the calls; ``warm_up`` makes the first answer
as fast as the next ones.

Threads may share a runner, and any of them may close it: a run that is on its way gives its answer,
a later one is refused. A child process may not use one that was loaded before the fork, since the
threads of its runtime stay with the parent: there every run is refused, and nothing is freed.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Final, Self

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.array_checks import check_inputs, check_outputs, require_names
from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.input_checks import InputChecks
from tokexport.runtimes.bundle.manifest import Manifest, RuntimeInfo, TensorSpec, batch_of
from tokexport.runtimes.cores.affinity import keep_on
from tokexport.runtimes.errors import RunError
from tokexport.runtimes.notebook import as_html, one_line

_open_runners: weakref.WeakSet[Runner] = weakref.WeakSet()
#: How many runs of a warm-up are timed, after the first.
_TIMED_RUNS: Final = 3


class Runner(ABC):
    """Runs one model.

    Args:
        inputs: The model's inputs, in order.
        outputs: The model's outputs, in order.
        runtime: What runs it.

    Attributes:
        inputs: The model's inputs, in order.
        outputs: The model's outputs, in order.
        runtime: What runs it.
        ranges: The lowest and the highest whole number that an input may hold, by its name.
        constants: The inputs of the model that the artifact holds the value of: a caller may leave
            them out, or give that value.
        computed: The outputs of the artifact: the model's, and the one of its checks.
        cores: The cores that the thread of ``submit`` is kept on; None leaves it to the system.
        strict: Whether the arrays that it returns are checked against these specs: with a manifest.
            A runtime by itself may report an unknown shape as ``()``.
        manifest: The manifest of the bundle that it was loaded from; None without a bundle.
    """

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        runtime: RuntimeInfo,
    ) -> None:
        self.inputs = inputs
        self.ranges: Mapping[str, tuple[int, int]] = {}
        self.constants: tuple[ConstantInput, ...] = ()
        self.outputs = self.computed = outputs
        self.strict = False
        self.cores: Collection[int] | None = None
        self.manifest: Manifest | None = None
        self._checks: InputChecks | None = None
        self.runtime = runtime
        self._closed = False
        self._forked = False
        self._closing = threading.Lock()
        self._submitted: ThreadPoolExecutor | None = None
        _open_runners.add(self)

    def __repr__(self) -> str:
        """Returns a line: the state, the runtime, the inputs and the outputs."""
        takes, gives = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return one_line(self._state, self._runtime_name, f"{takes} → {gives}")

    def _repr_html_(self) -> str:
        """Returns the same as HTML, for a notebook."""
        rows = [("input", *_columns(spec)) for spec in self.inputs]
        rows += [("constant input", one.name, one.dtype, str(one.shape)) for one in self.constants]
        rows += [("output", *_columns(spec)) for spec in self.outputs]
        headings = ("", "name", "dtype", "shape")
        return as_html(self._state, self._runtime_name, (), (headings, rows))

    @property
    def _state(self) -> str:
        return "closed" if self._closed else "ready"

    @property
    def _runtime_name(self) -> str:
        return f"{self.runtime.flavour} {self.runtime.version}"

    @property
    def batches(self) -> tuple[int, ...]:
        """The numbers of samples that an artifact takes at once, in the order of the bundle."""
        return (batch_of(self.inputs),)

    @property
    def shares_runs(self) -> bool:
        """Whether samples of several callers may share a run, each being answered by itself."""
        return False

    def run(
        self, arrays: Mapping[str, Array], out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Runs the model once.

        Args:
            arrays: An array for each input, by name, of exactly its shape and dtype: nothing is
                cast or broadcast. Infinities are taken, as masks use them; NaN is not. Those of
                ``constants`` may be among them. A loaded bundle takes any number of samples.
            out: An array for each output, by name, that the answer is written into: of its shape
                and dtype, contiguous, and of nobody else until the run has ended. None makes new
                ones.

        Returns:
            An array for each output, by name, in the order of ``outputs``; those of ``out``.

        Raises:
            InputMismatchError: The arrays are not the model's inputs or outputs, or the artifact
                would differ from the model on them.
            RunError: The runner is closed, it was loaded before this process was forked, or the
                runtime failed.
        """
        if self._closed:
            raise self._closed_error()
        require_names(arrays, "The inputs", self.inputs)
        taken = self._taken(arrays)
        if out is None:
            return self._checked(self._run_impl(taken))
        return self._checked(self._run_into(taken, self._room(taken, out)))

    def submit(
        self, arrays: Mapping[str, Array], out: Mapping[str, Array] | None = None
    ) -> Future[dict[str, Array]]:
        """Runs the model in the background, after what was submitted before.

        Args:
            arrays: As ``run`` takes them; they may not change until the run has ended.
            out: As ``run`` takes it.

        Returns:
            The future of what ``run`` returns or raises; one that has not begun can be cancelled.

        Raises:
            RunError: The runner is closed, or was loaded before this process was forked.
        """
        if self._closed:  # before the lock, which a fork may have left held
            raise self._closed_error()
        with self._closing:
            if self._closed:
                raise self._closed_error()
            if self._submitted is None:
                begin = None if self.cores is None else partial(keep_on, self.cores)
                self._submitted = ThreadPoolExecutor(1, "tokexport-run", begin)
            return self._submitted.submit(self.run, arrays, out)

    def warm_up(self) -> dict[int, float]:
        """Runs the model on zeros, so that memory is there and the processor awake.

        Returns:
            The median of three further runs in milliseconds, by the number of samples of a run.

        Raises:
            RunError: As ``run`` raises it.
        """
        arrays = {spec.name: self._zeros(spec) for spec in self.inputs}
        times = []
        for _ in range(1 + _TIMED_RUNS):
            if self._closed:
                raise self._closed_error()
            begun = time.perf_counter()
            self._run_impl(arrays)
            times.append((time.perf_counter() - begun) * 1e3)
        return {self.batches[0]: statistics.median(times[1:])}

    def _zeros(self, spec: TensorSpec) -> Array:
        """Returns zeros for an input, or the number next to it that the input takes."""
        low, high = self.ranges.get(spec.name, (0, 0))
        return np.full(spec.shape, min(max(0, low), high), spec.dtype)

    def _room(self, taken: Mapping[str, Array], out: Mapping[str, Array]) -> dict[str, Array]:
        """Checks the arrays that a caller gives for the outputs; adds room for the checks'."""
        specs = self._outputs_of(taken)
        check_outputs(tuple(specs[spec.name] for spec in self.outputs), out, taken)
        return {
            name: out[name] if name in out else np.empty(spec.shape, spec.dtype)
            for name, spec in specs.items()
        }

    def _outputs_of(self, taken: Mapping[str, Array]) -> dict[str, TensorSpec]:
        """Returns what the artifact gives for some arrays that it takes, by name."""
        return {spec.name: spec for spec in self.computed}

    def _taken(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return check_inputs(self.inputs, arrays, self.ranges, self.constants)

    def hold_to(self, checks: InputChecks | None) -> None:
        """Refuses from now on inputs that fail the checks, and hides the output of the checks."""
        self._checks = checks
        self.outputs = tuple(
            spec for spec in self.computed if checks is None or spec.name != checks.output
        )

    def _checked(self, found: dict[str, Array]) -> dict[str, Array]:
        for spec in self.computed if self.strict else ():
            given = found[spec.name]
            if not spec.fits(given.shape) or given.dtype != spec.dtype:
                raise RunError(
                    f"The artifact returned {spec.name} as {given.dtype} {given.shape}, not as "
                    "the manifest says.",
                    where=f"Output: {spec}",
                    fix="Compile the model anew.",
                )
        if self._checks is not None:
            self._checks.require(found.pop(self._checks.output))
        return found

    def bound(self, arrays: Mapping[str, Array]) -> Callable[[], dict[str, Array]]:
        """Checks arrays once and returns a function that runs the model on them, for timing.

        Args:
            arrays: As ``run`` takes them; they are held, not copied.

        Raises:
            InputMismatchError: The arrays are not the model's inputs.
            RunError: The returned function raises it as ``run`` does.
        """
        require_names(arrays, "The inputs", self.inputs)
        checked = self._taken(arrays)

        def run() -> dict[str, Array]:
            if self._closed:
                raise self._closed_error()
            return self._checked(self._run_impl(checked))

        return run

    def close(self) -> None:
        """Frees what the runtime holds, once no thread runs it; closing again does nothing."""
        if self._forked:
            return
        with self._closing:
            if not self._closed:
                self._closed = True
                if self._submitted is not None:  # what has not begun is refused by ``run``
                    self._submitted.shutdown(wait=False)
                self._close_impl()

    def __enter__(self) -> Self:
        """Returns the runner itself."""
        if self._closed:
            raise self._closed_error()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the runner."""
        self.close()

    @abstractmethod
    def _run_impl(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Runs on arrays that fit the inputs, contiguous, in the order of ``inputs``.

        Several threads may call it at once, and another may close the runner meanwhile.
        """

    def _run_into(self, arrays: dict[str, Array], out: dict[str, Array]) -> dict[str, Array]:
        """Runs as ``_run_impl`` does, into arrays that fit the outputs, those of checks included.

        A runtime that can write into memory of the caller's does; what others return is copied.
        """
        for name, found in self._run_impl(arrays).items():
            out[name][...] = found
        return out

    @abstractmethod
    def _close_impl(self) -> None:
        """Frees what the runtime holds, once its runs have ended; called once."""

    def _closed_error(self) -> RunError:
        if self._forked:
            return forked_error("The runner")
        return RunError("The runner is closed.", fix="Load the bundle again.")


def _columns(spec: TensorSpec) -> tuple[str, str, str]:
    return spec.name, spec.dtype, str(spec.shape)


def forked_error(what: str) -> RunError:
    """Returns the error for an object that cannot be used in a forked child."""
    return RunError(
        f"{what} was loaded before this process was forked from another.",
        where="The threads of its runtime stayed with the parent.",
        fix="Start the child by the method 'spawn', or load bundles in children only.",
    )


def _leave_to_parent() -> None:
    """Refuses, in a forked child, all runners of the parent, and never frees them.

    Freeing one there would wait for threads that do not exist, or crash.
    """
    for runner in list(_open_runners):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(runner))
        runner._closed = runner._forked = True


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_leave_to_parent)
