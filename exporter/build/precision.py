"""Determines the arithmetic of the lowered graph, and the warnings about it.

For int8 the ranges of the inputs of a model's linears are measured on the samples of a compile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Final

import numpy as np
import onnx_ir as ir

from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.runner import WorkerRunner
from tokexport.graph_passes.onnx_passes.graph.linears import block_linears
from tokexport.graph_passes.pipelines import Arithmetic
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import RuntimeInfo
from tokexport.runtimes.processor import sums_saturate

#: How many samples the ranges are measured on, at most; a batch that holds more is taken whole.
CALIBRATION_SAMPLES: Final = 300

#: The suffixes of a value's name that name the ends of its range.
_LEAST: Final = "/least"
_LARGEST: Final = "/largest"


def calibration_batches(batches: Batches) -> Iterator[dict[str, Array]]:
    """Yields the first batches that hold at most ``CALIBRATION_SAMPLES`` samples, at least one.

    A model takes batches of one size only, so none is cut.
    """
    size = next(iter(batches.arrays[batches.names[0]].shape[1:]), 1)
    yield from islice(batches, max(1, CALIBRATION_SAMPLES // size))


def linear_ranges(emitted: ir.Model, batches: Batches) -> dict[str, tuple[float, float]]:
    """Runs a model in ONNX Runtime; returns the least and the largest value by the input's name.

    Args:
        emitted: The model; it stays as it is.
        batches: The samples.
    """
    model = emitted.clone()
    read = dict.fromkeys(linear.rows for linear in block_linears(model))
    names = [value.name for value in read if value.name is not None]
    given = {value.name for value in model.graph.inputs}
    for value in read:
        if value.name not in given:
            _give_ends(model.graph, value)
    ranges: dict[str, tuple[float, float]] = {}
    with scratch_folder() as folder:
        path = folder / "model.onnx"
        save_onnx(model, path)
        with WorkerRunner(Opening(path)) as runner:
            for batch in calibration_batches(batches):
                found = {**batch, **runner.run(batch)}
                for name in names:
                    low, high = ranges.get(name, (np.inf, -np.inf))
                    least = found.get(f"{name}{_LEAST}", found.get(name))
                    largest = found.get(f"{name}{_LARGEST}", found.get(name))
                    assert least is not None
                    assert largest is not None
                    ranges[name] = min(low, float(least.min())), max(high, float(largest.max()))
    return ranges


def _give_ends(graph: ir.Graph, value: ir.Value) -> None:
    """Makes the least and the largest number of a value outputs, in place of the value."""
    for operator, end in (("ReduceMin", _LEAST), ("ReduceMax", _LARGEST)):
        result = ir.val(f"{value.name}{end}", value.dtype, [])
        graph.append(ir.node(operator, [value], {"keepdims": 0}, outputs=[result]))
        graph.outputs.append(result)


def arithmetic_of(config: CompileConfig, emitted: ir.Model, batches: Batches) -> Arithmetic:
    """Returns the arithmetic of the lowered graph; measures ranges where they are static.

    Args:
        config: What was asked for.
        emitted: The emitted model; it stays as it is.
        batches: The samples.
    """
    if not config.backend.arithmetic_in_graph(config.precision):
        return Arithmetic(config.precision)
    static = config.quantization_used == "static"
    ranges = linear_ranges(emitted, batches) if static else None
    return Arithmetic(
        config.precision, ranges, weight_bits=config.weight_bits or (7 if sums_saturate() else 8)
    )


def with_quantisation(
    runtime: RuntimeInfo, config: CompileConfig, arithmetic: Arithmetic
) -> RuntimeInfo:
    """Adds how int8 was quantised to the description of a runtime."""
    if config.quantization_used is None:
        return runtime
    details: dict[str, str | int | list[str]] = {"quantization": config.quantization_used}
    if config.backend.arithmetic_in_graph(config.precision):
        details["weight_bits"] = arithmetic.weight_bits
    return replace(runtime, details=runtime.details | details)


def precision_warnings(config: CompileConfig) -> tuple[str, ...]:
    """Returns a warning where the ranges of int8 were measured on synthetic inputs."""
    if config.quantization_used != "static" or config.inputs is not None:
        return ()
    return (
        f"The ranges of int8 were measured on synthetic inputs: pass up to {CALIBRATION_SAMPLES} "
        "real samples with --inputs.",
    )
