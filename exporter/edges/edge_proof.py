"""Compares an artifact with eager on inputs at the edges, and finds the ranges it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch.fx import GraphModule

from tokexport.exporter.capture.token_cap_report import TokenCapReport
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.reference import Reference, check_constants, run_reference
from tokexport.exporter.edges.edge_inputs import edge_inputs, joined
from tokexport.exporter.edges.edge_int8 import Int8Figures, int8_figures
from tokexport.exporter.edges.edge_report import EdgeReport
from tokexport.exporter.edges.index_tables import indices_of
from tokexport.exporter.edges.whole_number_ranges import RangeSearch, Reach, RunBatches
from tokexport.exporter.errors import ExporterError, listed
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.gate_warnings import weak_kinds
from tokexport.exporter.parity.gates import narrowed_stages
from tokexport.exporter.parity.measured_gates import (
    MeasuredGates,
    largest_rounding_move,
    measured_gates,
)
from tokexport.exporter.parity.proof import ParityError, Proof, ReplayStage, judge
from tokexport.exporter.parity.trace_difference import differences_named
from tokexport.graph_passes.torch_passes.canonicalize.widen_half import half_lines
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import TensorSpec

#: Returns the replay of a stage on some batches.
ReplayAt = Callable[[str, Batches, Proof], ReplayStage]

#: How far from the seed of the samples that of the edges is.
_OTHER_SEED = 7919


class EdgeProof:
    """The outputs of a model at the edges, and the gates of its stages there.

    Args:
        model: Takes and gives flat tensors.
        captured: Its traced graph, unlifted, before any pass.
        specs: Its inputs.
        batches: The samples; the first batch is what the edges are made from.
        reference: What eager answers to them.
        config: What is compiled. Where it has inputs, those are real, and no others are tried.
        cap: How the samples fit under a cap; others might not fit.

    Raises:
        ModelNotSupportedError: The numbers that the model returns beside its tensors are others at
            the edges.
    """

    def __init__(
        self,
        model: FlatModel,
        captured: GraphModule,
        specs: tuple[TensorSpec, ...],
        batches: Batches,
        reference: Reference,
        config: CompileConfig,
        cap: TokenCapReport | None,
    ) -> None:
        self._model, self._captured, self._specs = model, captured, specs
        self._precision, self._narrowed = config.precision, narrowed_stages(config)
        self._first = {name: batches.arrays[name][0] for name in batches.names}
        self._samples = specs[0].shape[0] if specs[0].shape else 1
        self._tables = indices_of(captured, batches)
        self._reference = reference
        self._not_finite: dict[str, str] = {}
        self._why_not = _why_not(config, cap)
        seed = config.seed + _OTHER_SEED
        kinds = {} if self._why_not else edge_inputs(specs, self._first, self._tables, seed)
        answers = self._answers(joined(batches.names, kinds))
        if answers is None:  # the model fails on some of them: each is run by itself
            alone = {
                kind: self._answers(joined(batches.names, {kind: kinds[kind]})) for kind in kinds
            }
            kinds = {kind: kinds[kind] for kind, found in alone.items() if found is not None}
            answers = _stacked([found for found in alone.values() if found is not None])
        self._outputs = answers
        self._batches = joined(batches.names, kinds)

    @property
    def batches(self) -> Batches:
        """The inputs at the edges; their kinds say which are which."""
        return self._batches

    @property
    def outputs(self) -> Mapping[str, Array]:
        """Eager's outputs on them, (batches, …) by name; empty where there are none."""
        return self._outputs

    def _answers(self, batches: Batches) -> dict[str, Array] | None:
        """Runs inputs in eager; None where eager fails, with a note if they are of one kind."""
        if not len(batches):
            return {}
        try:
            found = run_reference(self._model, batches, twice=False)
        except ExporterError as error:
            found, why = None, error.what
        if found is not None:
            check_constants(self._reference.constants, found.constants, listed(batches.kinds))
            if _shapes(found.outputs) == _shapes(self._reference.outputs):
                return found.outputs
            why = "its outputs have other shapes there"
        if len(batches) == 1:
            self._not_finite[batches.kinds[0]] = why
        return None

    def hold(
        self, stage: str, run: RunBatches, replay_at: ReplayAt, earlier: Mapping[str, RunBatches]
    ) -> EdgeReport:
        """Compares the traced graph, and then the last stage, with eager at the edges.

        A fault of the trace is in the float64 run that the gate of the last stage is made from, so
        that the traced graph has to pass at its own first. In int8 the last stage in fp32 is held
        in place of the artifact, which is held to less; see ``edge_int8``.

        Args:
            stage: The stage: ``artifact``, or ``lowered`` where no device runs the artifact.
            run: Runs it.
            replay_at: Returns the replay of a stage on some batches.
            earlier: Runs the stages before it, by name and in order from ``captured`` on; used
                where it fails, to find the first that does.

        Raises:
            ParityError: It differs from eager; the first stage that does is named.
        """
        stages = {**earlier, stage: run}
        if self._precision == "int8":
            stage = list(earlier)[-1]
        report = EdgeReport(stage=stage, not_finite=self._not_finite, why_not=self._why_not)
        if self._outputs:
            measured = self._measured(self._outputs, self._batches)
            proof = self._proof(measured, self._outputs, self._batches)
            self._check(proof, stage, stages, replay_at)
            unstable, weak = self._weak(measured)
            held = tuple(kind for kind in self._batches.kinds if kind not in unstable)
            tied = _tied(proof, self._batches.kinds)
            report = replace(report, held=held, unstable=unstable, weak=weak, tied=tied)
            if self._precision == "int8":
                report = replace(report, int8=self._check_int8(proof, run(self._batches)))
        return self._with_ranges(report, self._climb(run))

    def _with_ranges(self, report: EdgeReport, reach: Mapping[str, Reach]) -> EdgeReport:
        """Reports how far whole numbers may reach: by their tables, and by what was found."""
        wrong = {name: one for name, one in reach.items() if one.why}
        ranges = {name: one.ends for name, one in self._tables.items() if one.read.all()}
        beyond = {name: one.why for name, one in wrong.items()}
        for name, one in wrong.items():
            ranges[name] = one.low, one.high
            if name in self._tables:  # a range is one of all numbers of an input
                low, high = self._tables[name].ends
                ranges[name] = min(low, one.low), max(high, one.high)
                beyond[name] += f"; what is no index works from {one.low} to {one.high}"
        return replace(
            report,
            ranges=ranges,
            beyond=beyond,
            parts={name: found for name, one in self._tables.items() if (found := one.narrower)},
            unbounded={name: one.high for name, one in reach.items() if not one.why},
        )

    def _check(
        self, proof: Proof, stage: str, stages: Mapping[str, RunBatches], replay_at: ReplayAt
    ) -> None:
        """Compares the traced graph, then a stage, with eager; on failure all stages before it."""

        def check(name: str) -> None:
            proof.check(name, stages[name](self._batches), replay_at(name, self._batches, proof))

        with differences_named(self._captured, self._model, self._batches):
            check("captured")
        try:
            check(stage)
        except ParityError:
            proof.stages.clear()
            for name in list(stages)[: list(stages).index(stage)]:
                check(name)
            raise

    def _check_int8(self, proof: Proof, found: Mapping[str, Array]) -> Mapping[str, Int8Figures]:
        """Judges an artifact in int8 at the edges; see ``edge_int8``."""
        figures, failures = {}, []
        for name, wanted in self._outputs.items():
            samples = self._reference.outputs[name]
            one = int8_figures(wanted, found[name], samples, self._batches.kinds, self._samples)
            figures[name] = one
            failures += [f"output '{name}' {one.failure}"] if one.failure else []
        if failures:
            result = judge("artifact", self._outputs, found, proof.gates_of("artifact"))
            failed = replace(result, passed=False, detail="; ".join(failures) + ", at the edges")
            raise ParityError([*proof.stages, failed], first_narrowed=True)
        return figures

    def _weak(self, measured: MeasuredGates) -> tuple[dict[str, str], dict[str, str]]:
        """Returns the kinds on which nothing, and those on which little, is proven, and why."""
        precision = "fp32" if self._precision == "int8" else self._precision
        most = largest_rounding_move(bool(half_lines(self._captured.graph)), precision)
        return weak_kinds(self._batches.kinds, self._outputs, measured.rounding, most)

    def _measured(self, outputs: Mapping[str, Array], batches: Batches) -> MeasuredGates:
        precision = "fp32" if self._precision == "int8" else self._precision  # see ``hold``
        return measured_gates(self._captured, batches, outputs, self._samples, precision)

    def _proof(self, gates: MeasuredGates, outputs: Mapping[str, Array], batches: Batches) -> Proof:
        by_stage = {"captured": gates.captured} | dict.fromkeys(self._narrowed, gates.narrowed)
        scores = gates.scores_by_stage(self._narrowed)
        return Proof(
            outputs, gates.fp32, by_stage, self._narrowed, self._samples, batches.kinds, scores
        )

    def _climb(self, run: RunBatches) -> dict[str, Reach]:
        """Finds how far whole numbers may reach that index no table."""
        search = RangeSearch(self._model, self._first, run, self._precision)
        found = {}
        for spec in self._specs:
            free = np.ones(self._first[spec.name].shape, dtype=bool)
            if spec.name in self._tables:
                free = ~self._tables[spec.name].read
            if np.dtype(spec.dtype).kind == "i" and free.any():
                held = [self._first[spec.name], *self._batches.arrays[spec.name]]
                found[spec.name] = search.of(spec, held, free)
        return found


def _tied(proof: Proof, kinds: Sequence[str]) -> dict[str, int]:
    """Returns on how many samples of each kind a near-tie excused a stage."""
    samples = {
        one for stage in proof.stages if stage.ties is not None for one in stage.ties.samples
    }
    batches = [batch for batch, _ in sorted(samples)]
    return {kind: batches.count(row) for row, kind in enumerate(kinds) if row in batches}


def _shapes(outputs: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every output in a batch."""
    return {name: array.shape[1:] for name, array in outputs.items()}


def _why_not(config: CompileConfig, cap: TokenCapReport | None) -> str:
    """Returns why no edges are tried; '' if they are."""
    if config.inputs is not None:
        return "the samples given are what it is held to"
    return "other inputs may not fit under the cap" if cap is not None else ""


def _stacked(outputs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Joins outputs (batches, …) of several runs."""
    names = outputs[0] if outputs else ()
    return {name: np.concatenate([each[name] for each in outputs]) for name in names}
