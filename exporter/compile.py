"""Compiles a model stage by stage; each stage is a function of ``stages``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from rich.console import Console
from torch import nn

from tokexport.exporter.backends.known import REFERENCE
from tokexport.exporter.config import CompileOptions, compile_config
from tokexport.exporter.progress import Checklist
from tokexport.exporter.source import Source
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.exporter.stages.artifact_stages import build, bundle, emit, lower, verify
from tokexport.exporter.stages.run import CompileResult, compile_run
from tokexport.exporter.stages.traced_stages import capture, reduce, reference, rewrite
from tokexport.exporter.system.process_state import process_unchanged
from tokexport.exporter.worker.process import WORKER
from tokexport.graph_passes.ops import ops

__all__ = ["CompileResult", "compile"]


@process_unchanged()
def compile(
    model: nn.Module | Source,
    example_inputs: Any = None,
    target: str = "ort",
    *,
    output: str | Path | None = None,
    progress: Checklist | None = None,
    **options: Unpack[CompileOptions],
) -> CompileResult:
    """Compiles a model for a target, proves it against eager PyTorch and writes a bundle.

    With ``reduce`` a token reduction goes into the model first, and the reduced module in eager is
    what everything is held to.

    Args:
        model: The module as you use it, in any mode; it is left as it was.
        example_inputs: A tensor, a tuple of them, or a dict by the names of ``forward``.
        target: ``ort``, ``openvino`` or ``trt``.
        output: The folder that becomes the bundle; it has to be given.
        progress: Shows the stages; silent without one.
        options: Further fields of ``CompileConfig``, as ``CompileOptions`` types them:
            inputs, samples, input_shape, batch, reduce, restore, precision, quantization, atol,
            seed, min_speedup, require_run, keep_stages, force, drop_noise, token_cap, timed, tune,
            threads, constants.

    Raises:
        UsageError: The options or inputs do not fit.
        ModelNotSupportedError: The model cannot become a static graph.
        tokexport.graph_passes.reduction.errors.SurgeryError: The reduction cannot go into it.
        GateError: The surgery, parity, speed or a required run failed; there is no bundle then.
        WriteError: The bundle cannot be written.
        tokexport.runtimes.errors.RuntimesError: The target's runtime is missing or failed.
    """
    config = compile_config(target, output, options)
    source = model if isinstance(model, Source) else source_in_memory(model, example_inputs)
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    ops.register()
    WORKER.start(
        REFERENCE.runtime, config.backend.runtime
    )  # it gets ready while the model is traced
    with compile_run(source, config, checklist) as run:
        reduced = reduce(run)
        answered = reference(run, reduced)
        captured = capture(run, answered)
        rewritten = rewrite(run, answered, captured)
        emitted = emit(run, answered, captured, rewritten)
        lowered = lower(run, answered, captured, emitted)
        manifest = build(run, answered, lowered)
        verified = verify(run, answered, captured, lowered, manifest)
        return bundle(run, answered, captured, lowered, verified)
