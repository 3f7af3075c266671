"""What a compile computes in: the arithmetic of the lowered graph, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from tokexport.exporter.build.calibration import CALIBRATION_SAMPLES, linear_ranges
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.system.machine import sums_saturate
from tokexport.graph_passes.pipelines import Arithmetic
from tokexport.runtimes.bundle.manifest import RuntimeInfo


def arithmetic_of(config: CompileConfig, emitted: ir.Model, batches: Batches) -> Arithmetic:
    """Returns what the lowered graph computes in; measures ranges where they are static.

    Args:
        config: What was asked for.
        emitted: The emitted model; it stays as it is.
        batches: The samples.
    """
    if not config.backend.arithmetic_in_graph(config.precision):
        return Arithmetic(config.precision)
    static = config.quantization_used == "static"
    ranges = linear_ranges(emitted, batches) if static else None
    return Arithmetic(config.precision, ranges, weight_bits=7 if sums_saturate() else 8)


def with_quantisation(
    runtime: RuntimeInfo, config: CompileConfig, arithmetic: Arithmetic
) -> RuntimeInfo:
    """Adds to what built or runs an artifact how its integers were made."""
    if config.quantization_used is None:
        return runtime
    details: dict[str, str | int | list[str]] = {"quantization": config.quantization_used}
    if config.backend.arithmetic_in_graph(config.precision):
        details["weight_bits"] = arithmetic.weight_bits
    return replace(runtime, details=runtime.details | details)


def precision_warnings(config: CompileConfig) -> tuple[str, ...]:
    """Says where a precision rests on inputs that are not real."""
    if config.quantization_used != "static" or config.inputs is not None:
        return ()
    return (
        f"The ranges of int8 were measured on synthetic inputs: pass up to {CALIBRATION_SAMPLES} "
        "real samples with --inputs.",
    )
