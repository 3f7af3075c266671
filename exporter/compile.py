"""Compiles a model stage by stage; each stage is a function of ``stages``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from rich.console import Console
from torch import nn

from tokexport.exporter.backends.known import REFERENCE
from tokexport.exporter.batch_sizes import batches_of
from tokexport.exporter.config import CompileOptions, compile_config
from tokexport.exporter.progress import Checklist
from tokexport.exporter.source import Source
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.exporter.stages.artifact_stages import build, describe, emit, lower, verify
from tokexport.exporter.stages.bundle_stage import Described, bundle
from tokexport.exporter.stages.failure import failure_kept
from tokexport.exporter.stages.page_record import PageRecord
from tokexport.exporter.stages.run import CompileResult, CompileRun, compile_run
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
    page: bool = True,
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
        page: Whether ``report.html`` is written, into the bundle or into ``OUTPUT.failed``.
        options: Keywords, each with a default; see below.

    Options:
        inputs (default None): An ``.npz`` of real samples along the leading axis of each array,
            under the inputs' names; ``labels`` holds their classes. Or a folder of pictures, whose
            subfolders are their classes; a ``.csv`` of files and labels; or one picture. None draws
            inputs from ``seed``.
        preprocess (default None): The steps from a picture to the input, for example
            ``"size=224,crop=0.9,mean=imagenet,interpolation=bicubic"``; None takes those that the
            source says. The manifest holds them.
        embed_preprocess (default None): What of the preprocessing goes into the artifact, which
            then takes bytes (N, H, W, 3), red, green, blue: ``"normalise"``, scaling, normalisation
            and layout; or ``"480x640"``, resizing and cropping too, of pictures of that height and
            width. None leaves all of it to the runner.
        labels (default None): A file with the names of the classes, one a line, in the order of the
            outputs; the manifest holds them, and subfolders or a ``.csv`` may be named by them.
            None takes those that the source knows.
        samples (default None): How many samples of ``inputs`` are used, evenly spaced; None uses
            all.
        input_shape (default None): The sizes of the only input, batch first, where there are no
            example inputs.
        batch (default None): The number of samples that the artifact takes at once; None leaves
            what the example inputs have. Several numbers make an artifact each, in one bundle.
        seed (default 0): The seed of drawn inputs, a whole number.
        constants (default None): Inputs that are fixed: a dict of their values, or a list of names
            that are fixed at their examples.
        reduce (default None): A token reduction for a plain ViT: ``"tome:r=8"``, the path of a
            ``.toml`` or ``.json`` file, or a method object; None leaves the model as it is.
        restore (default False): Whether every token is put back behind the last block.
        token_cap (default None): Room for so many tokens of a sample wherever the data decide how
            many there are; a list has one number for each place. None refuses a model that needs
            one.
        drop_noise (default False): Whether random numbers become the means of their distributions.
        precision (default "fp32"): ``"fp32"``; for ort also ``"int8"``; for openvino ``"bf16"``,
            ``"fp16"`` and ``"int8"``; for trt ``"fp16"`` and ``"bf16"``.
        quantization (default None): For ort in int8, where the ranges of activations come from:
            ``"dynamic"``, each input as it comes, which None means too; or ``"static"``, measured
            once on ``inputs``.
        weight_bits (default None): For ort in int8, the bits of the weights, 7 or 8; with 7 the
            bundle runs on any processor. None is 8 where this processor sums bytes exactly, and 7
            elsewhere.
        atol (default None): The largest absolute difference from eager that an output may have, in
            the units of the output; None measures what rounding does, and allows for it.
        timed (default True): Whether the artifact is timed against eager.
        min_speedup (default None): The least speed-up over eager, a ratio; None reports it only.
        tune (default False): Whether the forms of the token operators are timed and the fastest
            are built.
        threads (default None): The most threads that eager and the runtime may use; None leaves
            it to them.
        require_run (default False): Whether an engine that cannot run on this machine is a failure.
        require_kernels (default False): Whether native kernels that do not load are a failure.
        keep_onnx (default None): Whether the bundle keeps the ONNX file that its artifact is built
            from, for ``tokexport rebuild`` on a device; None is what the target does: trt keeps it.
        keep_stages (default False): Whether the graph of every stage stays in ``OUTPUT.stages``.
        force (default False): Whether an earlier bundle at ``output`` may be replaced.

    Returns:
        The status, ``PASSED`` or ``BUILT, NOT RUN``, the report and the bundle's folder.

    Raises:
        UsageError: The options or inputs do not fit.
        ModelNotSupportedError: The model cannot become a static graph.
        tokexport.graph_passes.reduction.errors.SurgeryError: The reduction cannot go into it.
        GateError: The surgery, parity, speed or a required run failed; there is no bundle then, and
            what was found is in ``OUTPUT.failed``.
        WriteError: The bundle cannot be written.
        tokexport.runtimes.errors.RuntimesError: The target's runtime is missing or failed.
    """
    _, *others = batches_of(options.get("batch"))
    config = compile_config(target, output, options)
    source = model if isinstance(model, Source) else source_in_memory(model, example_inputs)
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    ops.register()
    WORKER.start(
        REFERENCE.runtime, config.backend.runtime
    )  # it gets ready while the model is traced
    record = PageRecord(enabled=page)
    with compile_run(source, config, checklist, record) as run, failure_kept(run):
        described = [_described(run)]
        for batch in others:
            with run.stage(f"batch {batch}"), failure_kept(further := run.at_batch(batch)):
                described.append(_described(further))
        return bundle(described)


def _described(run: CompileRun) -> Described:
    """Compiles, proves and describes the artifact for one batch."""
    reduced = reduce(run)
    answered = reference(run, reduced)
    captured = capture(run, answered)
    rewritten = rewrite(run, answered, captured)
    emitted = emit(run, answered, captured, rewritten)
    lowered = lower(run, answered, captured, emitted)
    manifest = build(run, answered, lowered)
    verified = verify(run, answered, captured, lowered, manifest)
    return Described(run, describe(run, answered, captured, lowered, verified))
