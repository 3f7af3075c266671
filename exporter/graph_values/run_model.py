"""Runs ONNX models that are held in memory, in the worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from tokexport.exporter.backends.known import REFERENCE
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.graph_values.given_values import computed_values, expose
from tokexport.exporter.graph_values.suspect import Values
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.runner import WorkerRunner
from tokexport.runtimes.bundle.runner import Runner


@contextmanager
def opened(model: ir.Model, native: bool = False, threads: int | None = None) -> Iterator[Runner]:
    """Opens a model in ONNX Runtime.

    Args:
        model: The model.
        native: Whether the native kernels run.
        threads: The most threads; None leaves it to the runtime.
    """
    with scratch_folder() as folder:
        path = folder / REFERENCE.artifact
        save_onnx(model, path)
        with WorkerRunner(Opening(path, native=native, threads=threads)) as runner:
            yield runner


def run_each(model: ir.Model, inputs: Iterable[Values], native: bool = False) -> list[Values]:
    """Runs a model on some inputs; what it does not take of them is left out."""
    with opened(model, native) as runner:
        names = [spec.name for spec in runner.inputs]
        return [runner.run({name: one[name] for name in names}) for one in inputs]


def exposed_values(path: Path, inputs: Sequence[Values]) -> list[Values]:
    """Returns what every node of an ONNX file gives, without native kernels, by batch."""
    model = ir.load(path)
    expose(model, [name for name, value in computed_values(model).items() if _is_shown(value)])
    return run_each(model, inputs)


def _is_shown(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type != "Constant"
