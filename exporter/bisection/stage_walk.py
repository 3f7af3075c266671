"""Runs the stages of a compile up to the first that differs, and keeps what it is held to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from torch.export import ExportedProgram
from torch.fx import GraphModule

from tokexport.exporter.build import run_stage
from tokexport.exporter.capture.random_ops import capture_without_draws
from tokexport.exporter.comparison.bundle_replay import bundle_replay
from tokexport.exporter.graph_values.shown_values import Artifact, artifact_at
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.gates import Gate
from tokexport.exporter.parity.proof import ParityError, ReplayResult, StageResult, Ties
from tokexport.exporter.stages.artifact_stages import Lowered, build, emit, lower
from tokexport.exporter.stages.run import CompileRun
from tokexport.exporter.stages.traced_stages import (
    Answered,
    Captured,
    capture,
    reduce,
    reference,
    rewrite,
)
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.runner import WorkerRunner
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import Manifest, TensorSpec

#: The name under which the lowered file is held to the gate of a reduced precision.
_NARROW: Final = "without kernels"


@dataclass(frozen=True)
class GivenBundle:
    """A bundle in place of the artifact that a compile builds.

    Attributes:
        folder: The bundle.
        manifest: What it holds.
        known: Returns the samples for the inputs of the model; None reads or draws them.
        check: Refuses a source of other inputs or outputs.
    """

    folder: Path
    manifest: Manifest
    known: Callable[[tuple[TensorSpec, ...]], Batches] | None
    check: Callable[[Answered], None]


@dataclass
class Walk:
    """The stages that were run.

    Attributes:
        run: The compile.
        stage: The stage that differs first; '' where none does.
        result: How far it is off; None where none is.
        answered: The model, its samples and eager's outputs.
        module: The traced graph, unlifted, before any pass.
        program: The program as the last pass of the traced graph left it.
        gates: How far the outputs may be off at the stage.
        emitted: The emitted file, once there is one.
        lowered: The lowered file.
        artifact: The artifact, as it is opened where it differs.
        stages: The results of all stages, in order.
    """

    run: CompileRun
    stage: str = ""
    result: StageResult | None = None
    answered: Answered | None = None
    module: GraphModule | None = None
    program: ExportedProgram | None = None
    gates: Mapping[str, Gate] = field(default_factory=dict)
    emitted: Path | None = None
    lowered: Path | None = None
    artifact: Artifact | None = None
    stages: tuple[StageResult, ...] = ()

    @property
    def ties(self) -> tuple[Ties, ...]:
        """The near-ties that the stages crossed."""
        return tuple(one.ties for one in self.stages if one.ties is not None)


def walk_stages(run: CompileRun, bundle: GivenBundle | None = None) -> Walk:
    """Runs the stages up to the first that differs on the samples.

    Args:
        run: The compile.
        bundle: The bundle that is held to the source; None builds one.

    Raises:
        GateError: Something else than a stage fails: the surgery, outputs that are not stable.
    """
    walk = Walk(run)
    try:
        _walk(walk, bundle)
    except ParityError as error:
        failed = error.stages[-1]
        walk.stages, walk.result = error.stages, failed
        walk.stage = walk.stage or failed.name
        walk.gates = failed.gates
        _complete(walk)
    return walk


def _walk(walk: Walk, bundle: GivenBundle | None) -> None:
    run = walk.run
    reduced = reduce(run)
    walk.answered = answered = reference(run, reduced, None if bundle is None else bundle.known)
    if bundle is not None:
        bundle.check(answered)
    captured = capture(run, answered)
    walk.module, walk.program = captured.module, captured.program
    rewritten = rewrite(run, answered, captured)
    emitted = emit(run, answered, captured, rewritten)
    walk.emitted = emitted.path
    lowered = lower(run, answered, captured, emitted)
    walk.lowered = lowered.path
    with _named(walk, "lowered"):
        if run.config.backend.runs_lowered:
            _hold_lowered(run, answered, captured, lowered)
    if not run.config.backend.runs_on_cpu:
        walk.stages = tuple(captured.proof.stages)
        return
    _hold_artifact(walk, answered, captured, lowered, bundle)
    walk.stages = tuple(captured.proof.stages)


def _hold_lowered(
    run: CompileRun, answered: Answered, captured: Captured, lowered: Lowered
) -> None:
    """Compares the lowered file of a target that loads it as it is."""
    found = run_stage.run_lowered(lowered.path, answered.batches, lowered.arithmetic)
    if run.config.precision == "fp32":
        captured.proof.check("lowered", found, lowered.stages.replay.lowered)
    else:
        captured.proof.check(_NARROW, found)


def _hold_artifact(
    walk: Walk,
    answered: Answered,
    captured: Captured,
    lowered: Lowered,
    bundle: GivenBundle | None,
) -> None:
    """Compares the artifact, first without its native kernels."""
    run, batches = walk.run, answered.batches
    if bundle is None:
        folder, manifest = run.bundle.path, build(run, answered, lowered)
    else:
        folder, manifest = bundle.folder, bundle.manifest
    precision, threads = run.config.precision, run.config.threads

    def replay(native: bool, failed: Sequence[int]) -> ReplayResult:
        if bundle is None:
            return lowered.stages.replay.artifact(manifest, failed, native=native)
        own = bundle_replay(run, folder, manifest, answered, captured, lowered, native=native)
        return own.replay(failed)

    is_lowered = bundle is None and run.config.backend.runs_lowered
    with run.stage("verify"):
        for native in (False, True):
            if is_lowered and not native:
                continue  # it was held as the lowered graph
            walk.artifact = artifact_at(
                folder / manifest.artifact, precision, native=native, threads=threads
            )
            opening = Opening(folder, manifest, threads=threads, native=native)
            with WorkerRunner(opening, lowered.path) as runner:
                found = run_stage.run_artifact(runner, batches)
            shown = "without kernels" if not run.config.backend.runs_lowered else "artifact"
            with _named(walk, "artifact" if native else shown):
                name = "artifact" if native else _NARROW
                given = None if precision == "int8" else partial(replay, native)
                captured.proof.check(name, found, given)
        if bundle is None:
            _hold_edges(walk, answered, captured, lowered, manifest)
    walk.artifact = None


def _hold_edges(
    walk: Walk, answered: Answered, captured: Captured, lowered: Lowered, manifest: Manifest
) -> None:
    """Compares the artifact of a compile at the edges; what fails there is searched there."""
    run, edges = walk.run, captured.edges
    earlier = {**lowered.stages.runs}
    if run.config.backend.runs_lowered and run.config.precision == "fp32":
        arithmetic = lowered.arithmetic
        earlier["lowered"] = partial(run_stage.run_lowered, lowered.path, arithmetic=arithmetic)
    opening = Opening(run.bundle.path, manifest, threads=run.config.threads)
    with WorkerRunner(opening, lowered.path) as runner:
        run_artifact = partial(run_stage.run_artifact, runner)
        try:
            edges.hold(
                "artifact", run_artifact, partial(lowered.stages.replay.at, manifest), earlier
            )
        except ParityError:
            given = replace(answered.reference, outputs={**edges.outputs})
            walk.answered = replace(answered, batches=edges.batches, reference=given)
            raise


@contextmanager
def _named(walk: Walk, stage: str) -> Iterator[None]:
    """Names the stage that is compared inside, whatever gate it is held to."""
    walk.stage = stage
    yield
    walk.stage = ""


def _complete(walk: Walk) -> None:
    """Makes what a stage that failed did not return."""
    answered = walk.answered
    assert answered is not None
    if walk.module is None:  # the trace failed, or its edges
        walk.program = capture_without_draws(answered.model, answered.batches)
        walk.module = as_graph_module(walk.program)
    if walk.stage == "onnx":
        walk.emitted = _kept(walk.run, "emitted")
    if walk.stage == "lowered":
        walk.lowered = _kept(walk.run, "lowered")


def _kept(run: CompileRun, stage: str) -> Path:
    (path,) = (run.kept.path / stage).glob("*.onnx")
    return path


def batches_of(walk: Walk, most: int) -> list[int]:
    """Returns the batches that are off, the farthest first, at most so many."""
    assert walk.answered is not None
    assert walk.result is not None
    worst = [one.index[0] for one in walk.result.worst.values()]
    ordered = dict.fromkeys([*worst, *walk.result.outside, *range(len(walk.answered.batches))])
    return [int(one) for one in ordered][:most]


def rows_of(arrays: Mapping[str, Array], row: int) -> dict[str, Array]:
    """Returns one batch of arrays (batches, …)."""
    return {name: array[row, ...] for name, array in arrays.items()}
