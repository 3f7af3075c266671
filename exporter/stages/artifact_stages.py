"""Runs the stages of a compile after torch: emit, lower, build, verify, describe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import onnx_ir as ir

from tokexport.exporter.build import run_stage
from tokexport.exporter.build.artifact import build as artifact_of
from tokexport.exporter.build.artifact import keep_onnx
from tokexport.exporter.build.emit import emit as onnx_of
from tokexport.exporter.build.precision import arithmetic_of, with_quantisation
from tokexport.exporter.bundle.class_scores import bundled_classes
from tokexport.exporter.bundle.new_manifest import new_manifest
from tokexport.exporter.bundle.reference_file import save_reference
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.eager.reference import run_reference
from tokexport.exporter.errors import ExporterError, GateError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.accuracy import accuracy_of, accuracy_warning, require_accuracy
from tokexport.exporter.parity.reference_selection import (
    bundle_gates,
    select_reference_batches,
    stored_gates,
)
from tokexport.exporter.parity.sample_independence import alike_within, samples_are_independent
from tokexport.exporter.speed.against_eager import (
    over_unreduced,
    time_against_eager,
    timed_name,
)
from tokexport.exporter.speed.busy_machine import busy_warning
from tokexport.exporter.speed.interleaved import require_speedup
from tokexport.exporter.speed.start_up import measure_start_up
from tokexport.exporter.stages.run import CompileRun
from tokexport.exporter.stages.traced_stages import Answered, Captured, RewrittenGraph, StageRuns
from tokexport.exporter.tuning.tune import tune
from tokexport.exporter.worker.runner import open_in_worker
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.pipelines import Arithmetic
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.artifact_needs import artifact_needs
from tokexport.runtimes.bundle.manifest import PASSED, Manifest, batch_of
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.errors import NoDeviceError, RunError
from tokexport.runtimes.native_library import FIX as KERNELS_FIX
from tokexport.runtimes.native_library import PROBLEM, require_kernels

#: The share of its neighbourhood's scale by which an answer may move with the samples beside it:
#: what rounding does in each precision, and what the ranges of a batch do in int8.
_ALIKE: Final = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 2e-1, "int8": 5e-1}


@dataclass(frozen=True)
class Emitted:
    """A model in ONNX, with functions for token reduction, proven.

    Attributes:
        model: The model; the next stage rewrites it in place.
        path: The file of it, as it was emitted.
        stages: The stages so far.
    """

    model: ir.Model
    path: Path
    stages: StageRuns


def emit(
    run: CompileRun, answered: Answered, captured: Captured, rewritten: RewrittenGraph
) -> Emitted:
    """Writes the rewritten graph as ONNX."""
    with run.stage("emit"), run.kept.explain():
        model = onnx_of(rewritten.program, answered.model.spec.names, answered.names)
        run.page.emitted(model)
        path = run.kept.save_onnx("emitted", model)
        run_onnx = partial(run_stage.run_onnx, path)
        captured.proof.check("onnx", run_onnx(answered.batches), rewritten.stages.replay.onnx)
        return Emitted(model, path, rewritten.stages.then("onnx", run_onnx))


@dataclass(frozen=True)
class Lowered:
    """The lowered graph that a target builds its artifact from, proven.

    Attributes:
        path: The ONNX file.
        arithmetic: What it computes in.
        outputs: What it gives, (batches, …) by name; None where this very file is the artifact.
        stages: The stages so far.
    """

    path: Path
    arithmetic: Arithmetic
    outputs: Mapping[str, Array] | None
    stages: StageRuns


def lower(run: CompileRun, answered: Answered, captured: Captured, emitted: Emitted) -> Lowered:
    """Rewrites the emitted graph for the target, in the precision asked for."""
    config, record, stages = run.config, run.record, emitted.stages
    with run.stage("lower"), run.kept.explain():
        arithmetic = arithmetic_of(config, emitted.model, answered.batches)
        if config.tune:
            with run.stage("tune"):
                record.tuning, stages.artifacts.forms = tune(emitted.model, config, arithmetic)
                record.warnings += record.tuning.warnings
        passes = config.backend.lowering(arithmetic, stages.artifacts.forms)
        lowered = pipelines.lower(emitted.model, passes)
        run.record_passes(lowered.reports)
        path = run.kept.save_onnx("lowered", lowered.model)
        if config.backend.runs_lowered:
            return Lowered(path, arithmetic, None, stages)
        run_lowered = partial(run_stage.run_lowered, path, arithmetic=arithmetic)
        found = run_lowered(answered.batches)
        captured.proof.check("lowered", found, stages.replay.lowered)
        record.accuracy = accuracy_of(answered.reference.outputs, found, answered.batches)
        require_accuracy(record.accuracy, config)
        return Lowered(path, arithmetic, found, stages.then("lowered", run_lowered))


def build(run: CompileRun, answered: Answered, lowered: Lowered) -> Manifest:
    """Builds the target's artifact in the folder of the bundle."""
    config, record, folder = run.config, run.record, run.folder
    with run.stage("build"), run.kept.explain(lowered.path):
        run.bundle.require_space(_size(lowered.path.parent))
        batches = answered.batches
        runtime = artifact_of(config.backend, lowered.path, folder, config.precision, batches)
        runtime = with_quantisation(runtime, config, lowered.arithmetic)
        record.runtime, record.artifact_bytes = runtime, _size(folder)
        assert record.fingerprint is not None
        kept = keep_onnx(lowered.path, folder) if config.keeps_onnx else None
        described = new_manifest(
            config,
            answered.source,
            record.fingerprint,
            answered.given,
            answered.inputs,
            answered.batches,
            answered.reference,
            record.reduction,
            record.tuning,
            record.token_schedule,
            runtime,
        )
        return replace(described, kept_onnx=kept)


@dataclass(frozen=True)
class Verified:
    """An artifact that was proven, by itself or by its lowered graph.

    Attributes:
        manifest: Describes it, and says whether it ran.
        outputs: What the last stage that ran gives, (batches, …) by name.
    """

    manifest: Manifest
    outputs: Mapping[str, Array]


def verify(
    run: CompileRun, answered: Answered, captured: Captured, lowered: Lowered, manifest: Manifest
) -> Verified:
    """Compares the artifact with eager, on the samples and at the edges, and times it.

    Where this machine has no device for it, its lowered graph is compared at the edges.
    """
    with run.kept.explain(), _opened(run, lowered, manifest) as (runner, why_not):
        if runner is None:
            assert lowered.outputs is not None
            run.record.not_run_reason = why_not
            _require_no_run(run.config, why_not)
            run_lowered = dict(lowered.stages.runs)["lowered"]
            alone = _independent(run, answered, run_lowered, lowered.outputs)
            _hold_edges(run, captured, lowered, manifest, None)
            return Verified(replace(manifest, samples_independent=alone), lowered.outputs)
        with run.stage("verify"):
            verified = _hold_artifact(run, answered, captured, lowered, manifest, runner)
            run_artifact = partial(run_stage.run_artifact, runner)
            alone = _independent(run, answered, run_artifact, verified.outputs)
        _hold_edges(run, captured, lowered, manifest, runner)
        latency = None
        if run.config.timed:
            with run.stage("speed"):
                first, threads = next(iter(answered.batches)), run.config.threads
                run.record.start_up = measure_start_up(
                    run.folder, manifest, first, onnx=lowered.path, threads=threads
                )
                latency = _time(run, answered, runner)
        described = replace(verified.manifest, samples_independent=alone, latency_ms=latency)
        return replace(verified, manifest=described)


def _independent(
    run: CompileRun,
    answered: Answered,
    run_last: Callable[[Batches], Mapping[str, Array]],
    found: Mapping[str, Array],
) -> bool:
    """Returns whether each sample is answered alike, whatever the others of its batch are.

    Eager says it of the model, and the last stage of what was built.
    """
    batch = batch_of(answered.inputs)
    samples, expected = answered.batches, answered.reference.outputs

    def run_eager(batches: Batches) -> Mapping[str, Array]:
        return run_reference(answered.given, batches, twice=False).outputs

    try:
        alone = all(
            samples_are_independent(one, samples, before, alike_within(share), batch)
            for one, before, share in (
                (run_eager, expected, _ALIKE["fp32"]),
                (run_last, found, _ALIKE[run.config.precision]),
            )
        )
    except (ExporterError, RunError):  # samples in other batches than they were given in
        alone = False
    if not alone:
        run.record.warnings += (
            f"The answers to a sample may depend on the other samples of its batch: the bundle "
            f"takes exactly {batch} at once.",
        )
    return alone


def _hold_artifact(
    run: CompileRun,
    answered: Answered,
    captured: Captured,
    lowered: Lowered,
    manifest: Manifest,
    runner: Runner,
) -> Verified:
    """Compares the artifact with eager on the samples, also without its native kernels."""
    config, record, batches = run.config, run.record, answered.batches
    require_kernels(runner.runtime, asked=config.require_kernels)
    if problem := runner.runtime.details.get(PROBLEM):
        record.warnings += (f"{problem} It was proven and timed without them. {KERNELS_FIX}",)
    replay = (
        None if config.precision == "int8" else partial(lowered.stages.replay.artifact, manifest)
    )
    if runner.runtime.details.get("kernel_calls"):
        plain = open_in_worker(run.folder, manifest, onnx=lowered.path, native=False)
        with plain as without:
            found = run_stage.run_artifact(without, batches)
        captured.proof.check("without kernels", found, replay and partial(replay, native=False))
    found = run_stage.run_artifact(runner, batches)
    captured.proof.check("artifact", found, replay)
    record.runtime = with_quantisation(runner.runtime, config, lowered.arithmetic)
    record.accuracy = accuracy_of(answered.reference.outputs, found, batches)
    require_accuracy(record.accuracy, config)
    return Verified(replace(manifest, status=PASSED, runtime=record.runtime), found)


def _hold_edges(
    run: CompileRun, captured: Captured, lowered: Lowered, manifest: Manifest, runner: Runner | None
) -> None:
    """Compares the artifact with eager at the edges, or its lowered graph without a runner."""
    earlier, replay_at = dict(lowered.stages.runs), partial(lowered.stages.replay.at, manifest)
    with run.stage("edges"):
        if runner is None:
            found = captured.edges.hold("lowered", earlier.pop("lowered"), replay_at, earlier)
        else:
            run_artifact = partial(run_stage.run_artifact, runner)
            found = captured.edges.hold("artifact", run_artifact, replay_at, earlier)
        run.record.edges = found


def _time(run: CompileRun, answered: Answered, runner: Runner) -> float:
    """Times the artifact against eager, and checks the least speed-up if one is asked for.

    Returns:
        The median of the artifact's runs, in milliseconds.
    """
    config, record = run.config, run.record
    unreduced = answered.unreduced
    speed = time_against_eager(answered.given, runner, answered.batches, config, unreduced)
    record.speed = speed
    record.speed_over_unreduced = over_unreduced(speed, config.seed)
    record.warnings += busy_warning()
    own = timed_name(config, runner)
    if config.min_speedup is not None:
        require_speedup(speed, own, config.min_speedup)
    return speed.timings[own].median_ms


def describe(
    run: CompileRun, answered: Answered, captured: Captured, lowered: Lowered, verified: Verified
) -> Manifest:
    """Writes the reference data, and completes the manifest of the artifact and the record."""
    config, record, found = run.config, run.record, verified.outputs
    with run.stage("bundle"):
        assert record.edges is not None
        if record.speed is not None:  # its runner is closed, and leaves its memory
            run.page.timed(config, run.folder, next(iter(answered.batches)))
        gates, said = bundle_gates(captured.proof, found, captured.gates.narrowed, config)
        classes = bundled_classes(
            run.source.model,
            captured.module,
            answered.reference.outputs,
            answered.batches,
            None if config.labels is None else Path(config.labels),
        )
        manifest = replace(
            verified.manifest,
            scores=classes.scores,
            labels=classes.labels,
            gates={one.name: gates[one.name].for_manifest() for one in verified.manifest.outputs},
            input_ranges=dict(record.edges.ranges),
            requires=artifact_needs(
                run.folder / verified.manifest.artifact, verified.manifest.runtime
            ),
        )
        said += (
            classes.warnings + record.edges.warnings() + accuracy_warning(record.accuracy, config)
        )
        ran = manifest if manifest.status == PASSED else None
        own = partial(lowered.stages.replay.own_decisions, ran)
        chosen = select_reference_batches(captured.proof, found, own)
        record.gates, record.warnings = gates, (*record.warnings, *said, *chosen.warnings)
        arrays = answered.batches.arrays
        save_reference(
            run.folder / manifest.reference,
            {name: arrays[name][chosen.rows] for name in answered.batches.names},
            {spec.name: chosen.outputs[spec.name] for spec in manifest.outputs},
            chosen.tie_free,
            stored_gates(gates, chosen.rows),
        )
        return manifest


@contextmanager
def _opened(
    run: CompileRun, lowered: Lowered, manifest: Manifest
) -> Iterator[tuple[Runner | None, str]]:
    """Opens the artifact, or returns why this machine has no device for an engine."""
    folder, threads = run.folder, run.config.threads
    try:
        runner = open_in_worker(folder, manifest, onnx=lowered.path, threads=threads)
    except NoDeviceError as error:
        yield None, error.what
        return
    with runner:
        yield runner, ""


def _require_no_run(config: CompileConfig, why_not: str) -> None:
    if config.require_run or config.min_speedup is not None:
        wanted = "--require-run" if config.require_run else "--min-speedup"
        raise GateError(
            f"The engine was built and did not run here, and {wanted} asks for a run.",
            where=why_not,
            fix="Compile on a machine with a GPU that the engine is for, or leave the option out.",
        )


def _size(folder: Path) -> int:
    """Returns the bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())
