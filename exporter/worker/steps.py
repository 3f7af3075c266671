"""Defines the steps that the worker can be asked for.

It imports no torch, so that the worker is ready at once; what quantises imports what it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.system.process_memory import give_back_memory, resident_bytes
from tokexport.exporter.worker.messages import Message
from tokexport.exporter.worker.openings import Opening
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.openvino.runner import convert
from tokexport.runtimes.ort.optimizer import optimise_vit

#: How far a try of a model goes.
BUILT: Final = "built"
LOADED: Final = "loaded"
RUN: Final = "run"


class Steps:
    """Answers questions, and holds the runners that were opened for them by their number."""

    def __init__(self) -> None:
        self._runners: dict[int, Runner] = {}
        self._table: dict[str, Callable[[Message], Message]] = {
            "build": _build,
            "convert": _convert,
            "optimise": _optimise,
            "try": _try,
            "open": self._open,
            "start": _start,
            "run": self._run,
            "close": self._close,
        }

    def answer(self, question: Message) -> Message:
        """Runs a step.

        Raises:
            Exception: Whatever the step raises.
        """
        return self._table[question.fields["step"]](question)

    def _open(self, question: Message) -> Message:
        runner = self._runner(question)
        return Message(
            {
                "inputs": [asdict(spec) for spec in runner.inputs],
                "outputs": [asdict(spec) for spec in runner.outputs],
                "runtime": asdict(runner.runtime),
            }
        )

    def _run(self, question: Message) -> Message:
        return Message({}, self._runner(question).run(question.arrays))

    def _close(self, question: Message) -> Message:
        runner = self._runners.pop(question.fields["runner"], None)
        if runner is not None:
            runner.close()
        return Message()

    def _runner(self, question: Message) -> Runner:
        """Returns a runner; a worker before this one may have been the one that opened it."""
        number = question.fields["runner"]
        if number not in self._runners:
            self._runners[number] = Opening.from_json(question.fields["opening"]).open()
        return self._runners[number]


def _build(question: Message) -> Message:
    given = question.fields
    lowered, artifact, scratch = (Path(given[one]) for one in ("lowered", "artifact", "scratch"))
    backend = BACKENDS[given["backend"]]
    runtime = backend.build(lowered, artifact, given["precision"], scratch, question.arrays)
    return Message(asdict(runtime))


def _convert(question: Message) -> Message:
    runtime = convert(Path(question.fields["model"]), Path(question.fields["artifact"]))
    return Message(asdict(runtime))


def _optimise(question: Message) -> Message:
    given = question.fields
    output = Path(given["artifact"])
    optimise_vit(Path(given["model"]), output, heads=given["heads"], hidden=given["hidden"])
    return Message()


def _start(question: Message) -> Message:
    """Loads an artifact, runs it once, and says what that took and how much memory it holds."""
    opening = Opening.from_json(question.fields["opening"])
    give_back_memory()
    before, begun = resident_bytes(), time.perf_counter()
    with opening.open() as runner:
        loaded = time.perf_counter()
        runner.run(question.arrays)
        ran, after = time.perf_counter(), resident_bytes()
    held = None if before is None or after is None else max(0, after - before)
    return Message(
        {
            "load_ms": (loaded - begun) * 1e3,
            "first_run_ms": (ran - loaded) * 1e3,
            "memory_bytes": held,
        }
    )


def _try(question: Message) -> Message:
    """Takes a cut of a model as far as the whole model came, and returns nothing."""
    given = question.fields
    model, scratch, precision = Path(given["model"]), Path(given["scratch"]), given["precision"]
    opening = Opening(model, precision=precision, native=given["native"])
    backend = BACKENDS[given["backend"]]
    if not backend.runs_lowered:
        artifact = scratch / f"try-{backend.artifact}"
        sample: dict[str, Array] = {}
        if precision == "int8":
            arrays = question.arrays or _zeros(model)
            sample = {name: array[np.newaxis] for name, array in arrays.items()}
        backend.build(model, artifact, precision, scratch, sample)
        opening = Opening(artifact, precision=precision, native=given["native"])
    if given["until"] != BUILT:
        with opening.open() as runner:
            if given["until"] == RUN:
                runner.run(question.arrays)
    return Message()


def _zeros(model: Path) -> dict[str, Array]:
    """Returns synthetic inputs for an ONNX file, on which ranges can be measured."""
    found = {}
    for value in ir.load(model).graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        assert value.dtype is not None
        found[value.name] = np.zeros(value.shape.numpy(), value.dtype.numpy())
    return found
