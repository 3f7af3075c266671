"""Runs the stages of a compile in torch: reduce, reference, capture, rewrite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from torch.export import ExportedProgram
from torch.fx import GraphModule

from tokexport.exporter.build import run_stage
from tokexport.exporter.build.precision import precision_warnings
from tokexport.exporter.capture.fingerprint import fingerprint
from tokexport.exporter.capture.random_ops import (
    capture_without_draws,
    reference_of,
    without_random_ops,
)
from tokexport.exporter.capture.token_cap import under_cap
from tokexport.exporter.capture.token_cap_report import TokenCapReport
from tokexport.exporter.config import InputConfig
from tokexport.exporter.eager.embed_preprocessing import embedded, over_pixels
from tokexport.exporter.eager.example_inputs import constants_of, prepare
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.reference import Reference
from tokexport.exporter.eager.settled_state import settled_warning
from tokexport.exporter.edges.edge_proof import EdgeProof
from tokexport.exporter.edges.whole_number_ranges import RunBatches
from tokexport.exporter.errors import ModelNotSupportedError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.accuracy import accuracy_of
from tokexport.exporter.parity.gate_warnings import (
    advice_for,
    gate_warnings,
    half_warning,
    spread_warnings,
)
from tokexport.exporter.parity.gates import narrowed_stages
from tokexport.exporter.parity.hits import class_warnings
from tokexport.exporter.parity.measured_gates import (
    MeasuredGates,
    measured_gates,
    require_stable_outputs,
)
from tokexport.exporter.parity.proof import Proof
from tokexport.exporter.parity.trace_difference import differences_named
from tokexport.exporter.reduction.reduced_source import ReducedSource, reduced_source
from tokexport.exporter.source import Source
from tokexport.exporter.stages.run import CompileRun
from tokexport.exporter.ties.replay_stages import ReplayArtifacts, StageReplay
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.torch_passes.canonicalize.widen_half import half_lines
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import TensorSpec

#: What a user can do where a model can be traced without its reduction only.
_OR_RESTORE: Final = (
    "Pass --restore, if what follows the blocks counts on every patch, as a mask of them does."
)


def reduce(run: CompileRun) -> ReducedSource | None:
    """Puts a token reduction into the model; returns None without a recipe."""
    if run.config.reduce is None:
        return None
    with run.stage("reduce"):
        reduced = reduced_source(run.source, run.config, run.checklist.counted)
        run.record.reduction = reduced.use
        return reduced


@dataclass(frozen=True)
class Answered:
    """A model, the samples that it is proven on, and eager's outputs on them.

    Attributes:
        source: The model, its reduction in it.
        given: The same over flat tensors, with the assumptions of its graph.
        model: The same without its random numbers.
        inputs: Its inputs.
        batches: The samples.
        size: How many samples a batch has.
        cap: How the samples fit under a cap; None without one.
        reference: The answers.
        unreduced: The model without its reduction; None where it has none.
    """

    source: Source
    given: FlatModel
    model: FlatModel
    inputs: tuple[TensorSpec, ...]
    batches: Batches
    size: int
    cap: TokenCapReport | None
    reference: Reference
    unreduced: FlatModel | None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return tuple(self.reference.outputs)


def reference(
    run: CompileRun,
    reduced: ReducedSource | None,
    known: Callable[[tuple[TensorSpec, ...]], Batches] | None = None,
) -> Answered:
    """Reads the inputs and runs the model in eager.

    Args:
        run: The compile.
        reduced: The model with its reduction; None without one.
        known: Returns the samples for the inputs of the model; None reads or draws them.
    """
    config, record = run.config, run.record
    source = run.source if reduced is None else reduced.source
    with run.stage("reference"):
        taken: InputConfig = config
        if config.embed_preprocess is not None:
            source, taken = embedded(source, config, config.embed_preprocess)
        given, inputs, batches = prepare(source, taken, run.checklist.counted)
        if reduced is not None and config.embed_preprocess is not None:
            as_given = over_pixels(reduced.unreduced, source, given.spec)
            reduced = replace(reduced, unreduced=as_given)
        batches = batches if known is None else known(inputs)
        batches = replace(batches, watch=run.checklist.counted)
        size = inputs[0].shape[0] if inputs[0].shape else 1
        drop = config.drop_noise
        given, batches, cap = under_cap(given, batches, size, config.caps, drop)
        record.token_cap, record.constant_inputs = cap, constants_of(given)
        record.inputs, record.samples = batches.origin, batches.samples
        record.batches = len(batches)
        model, record.random_ops = without_random_ops(given, batches, drop)
        answers = reference_of(model, batches)
        # Labels of an unknown class end the compile here.
        accuracy_of(answers.outputs, answers.outputs, batches)
        if reduced is not None:
            record.reduction = reduced.compared(answers.outputs, batches)
        unreduced = None if reduced is None else reduced.unreduced
        return Answered(source, given, model, inputs, batches, size, cap, answers, unreduced)


@dataclass(frozen=True)
class Captured:
    """A traced model, proven, and the gates of all stages after it.

    Attributes:
        program: The traced program; the next stage rewrites it in place.
        module: The traced graph, unlifted, as it stays.
        gates: How far the outputs of every stage may be off.
        proof: Compares the stages with eager.
        edges: The same on inputs at the edges.
    """

    program: ExportedProgram
    module: GraphModule
    gates: MeasuredGates
    proof: Proof
    edges: EdgeProof


def capture(run: CompileRun, answered: Answered) -> Captured:
    """Traces the model, measures its rounding error and compares the trace with eager."""
    config, model, batches = run.config, answered.model, answered.batches
    outputs, size = answered.reference.outputs, answered.size
    with run.stage("capture"):
        with _restoring_named(run):
            program = capture_without_draws(model, batches)
        run.record.fingerprint = fingerprint(program)
        run.kept.save_program("captured", program)
        run.page.captured(program, size)
        module = as_graph_module(program)
        advice = advice_for(config)
        gates = measured_gates(
            module, batches, outputs, size, config.precision, config.atol, advice
        )
        half = half_lines(module.graph)
        require_stable_outputs(gates.captured, bool(half))
        narrowed = narrowed_stages(config)
        proof = Proof(
            outputs,
            gates.fp32,
            {"captured": gates.captured} | dict.fromkeys(narrowed, gates.narrowed),
            narrowed,
            samples=size,
            scores=gates.scores_by_stage(narrowed),
        )
        run.record.gates, run.record.stages = gates.narrowed, proof.stages
        run.page.errors = proof.distributions
        run.record.warnings = (
            *batches.warnings,
            *class_warnings(batches, next(iter(outputs.values()))),
            *gate_warnings(gates.fp32, answered.cap),
            *half_warning(half),
            *settled_warning(model),
            *spread_warnings(gates.narrowed),
            *precision_warnings(config),
            *(() if run.record.reduction is None else run.record.reduction.warnings),
        )
        with differences_named(module, model, batches):
            proof.check("captured", run_stage.run_graph(module, batches, answered.names))
        require_stable_outputs(
            gates.fp32, bool(half)
        )  # a fault of the trace would look like rounding
        require_stable_outputs(gates.narrowed, bool(half), config.precision)
        reference, cap = answered.reference, answered.cap
        edges = EdgeProof(model, module, answered.inputs, batches, reference, config, cap)
        return Captured(program, module, gates, proof, edges)


@contextmanager
def _restoring_named(run: CompileRun) -> Iterator[None]:
    """Adds advice to a refusal of a reduced model: the trace may fail on fewer tokens."""
    use = run.record.reduction
    try:
        yield
    except ModelNotSupportedError as error:
        if use is not None and not run.config.restore and "restore" not in use.recipe:
            error.fix = f"{_OR_RESTORE} Otherwise: {error.fix}"
        raise


@dataclass(frozen=True)
class StageRuns:
    """The stages so far, to be run again on other batches.

    Attributes:
        replay: Runs them with eager's decisions as inputs.
        artifacts: The graphs and files of the replay.
        runs: Runs each as it is, by its name, in order.
    """

    replay: StageReplay
    artifacts: ReplayArtifacts
    runs: Mapping[str, RunBatches]

    def then(self, name: str, run: RunBatches) -> StageRuns:
        """Returns these stages and one more."""
        return replace(self, runs={**self.runs, name: run})


@dataclass(frozen=True)
class RewrittenGraph:
    """A traced graph with operators for token reduction, proven.

    Attributes:
        program: The graph.
        stages: The stages so far.
    """

    program: ExportedProgram
    stages: StageRuns


def rewrite(run: CompileRun, answered: Answered, captured: Captured) -> RewrittenGraph:
    """Rewrites the traced graph, in place, with operators for token reduction."""
    config, batches, names = run.config, answered.batches, answered.names
    with run.stage("rewrite"):
        rewritten = pipelines.rewrite(captured.program, partial(run.page.rewritten, batches))
        run.record.token_schedule = rewritten.token_schedule
        run.record.recognised = rewritten.recognised
        run.record_passes(rewritten.reports)
        program = rewritten.program
        run.kept.save_program("rewritten", program)
        folder = run.kept.path / "replay"
        artifacts = ReplayArtifacts(
            program, batches.names, names, config.backend, config.precision, folder
        )
        replay = StageReplay(captured.module, artifacts, batches, captured.proof)

        def run_captured(some: Batches) -> dict[str, Array]:
            return run_stage.run_graph(captured.module, some, names)

        def run_rewritten(some: Batches) -> dict[str, Array]:
            return run_stage.run_graph(as_graph_module(program), some, names)

        captured.proof.check("rewritten", run_rewritten(batches), replay.rewritten)
        runs = {"captured": run_captured, "rewritten": run_rewritten}
        return RewrittenGraph(program, StageRuns(replay, artifacts, runs))
