"""Holds an artifact to inputs that neither the trace nor the samples show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from torch.fx import GraphModule

from tokexport.exporter.capture import FlatModel
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.edge_inputs import RUNGS, between, edge_inputs, tables_of
from tokexport.exporter.edge_report import EdgeReport
from tokexport.exporter.errors import ExporterError
from tokexport.exporter.gates import ROUNDING_FACTOR, Gate, narrowed_hops
from tokexport.exporter.inputs import Batches
from tokexport.exporter.measured_gates import PROVES_NOTHING, measured_gates
from tokexport.exporter.parity import ParityError, Proof, TellHop
from tokexport.exporter.reference import run_reference
from tokexport.exporter.token_cap_use import TokenCapUse
from tokexport.runtimes.base import Array
from tokexport.runtimes.errors import RuntimesError
from tokexport.runtimes.manifest import TensorSpec
from tokexport.runtimes.neighbourhoods import Neighbourhoods, worst

#: How far floating outputs may be off where only the whole numbers are in question.
_COARSE: Final = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 0.2}

#: Runs a step on some batches; gives (batches, …) by output.
RunBatches = Callable[[Batches], Mapping[str, Array]]

#: How far from the seed of the samples that of the edges is.
_OTHER_SEED = 7919


class EdgeProof:
    """What a model answers at the edges, and what its steps are held to there.

    Args:
        model: Takes and gives flat tensors.
        captured: Its traced graph, unlifted, before any pass.
        specs: Its inputs.
        batches: The samples; the first batch is what the edges are made from.
        outputs: What eager answers to them, (batches, …) by name.
        config: What is compiled. Where it has inputs, those are real, and no others are tried.
        cap: How the samples fit under a cap; others might not fit.
    """

    def __init__(
        self,
        model: FlatModel,
        captured: GraphModule,
        specs: tuple[TensorSpec, ...],
        batches: Batches,
        outputs: Mapping[str, Array],
        config: CompileConfig,
        cap: TokenCapUse | None,
    ) -> None:
        self._model, self._captured, self._specs = model, captured, specs
        self._precision, self._narrowed = config.precision, narrowed_hops(config)
        self._first = {name: batches.arrays[name][0] for name in batches.names}
        self._samples = specs[0].shape[0] if specs[0].shape else 1
        self._tables = tables_of(captured, batches)
        self._not_finite: dict[str, str] = {}
        self._why_not = _why_not(config, cap)
        seed = config.seed + _OTHER_SEED
        kinds = {} if self._why_not else edge_inputs(specs, self._first, self._tables, seed)
        self._shapes = {name: array.shape[1:] for name, array in outputs.items()}
        answers = self._answers(_joined(batches.names, kinds))
        if answers is None:  # some of them say nothing: which, each by itself tells
            alone = {
                kind: self._answers(_joined(batches.names, {kind: kinds[kind]})) for kind in kinds
            }
            kinds = {kind: kinds[kind] for kind, found in alone.items() if found is not None}
            answers = _stacked([found for found in alone.values() if found is not None])
        self._outputs = answers
        self._batches = _joined(batches.names, kinds)

    def _answers(self, batches: Batches) -> dict[str, Array] | None:
        """Runs inputs in eager; None where it does not answer, and a single kind is noted then."""
        if not len(batches):
            return {}
        try:
            outputs = run_reference(self._model, batches, twice=False).outputs
            if {name: array.shape[1:] for name, array in outputs.items()} == self._shapes:
                return outputs
            why = "its outputs have other shapes there"
        except ExporterError as error:
            why = error.what
        if len(batches) == 1:
            self._not_finite[batches.kinds[0]] = why
        return None

    def hold(
        self,
        hop: str,
        run: RunBatches,
        tell: Callable[[str, Batches, Proof], TellHop],
        earlier: Mapping[str, RunBatches],
    ) -> EdgeReport:
        """Holds the traced graph, and then the last step, to eager at the edges.

        A fault of the trace is in the float64 run that the gate of the last step is made from, so
        that the traced graph has to pass at its own first.

        Args:
            hop: The step: ``artifact``, or ``lowered`` where no device runs the artifact.
            run: Runs it.
            tell: Returns what runs a step on some batches, told how to decide.
            earlier: Runs the steps before it, by name and in order from ``captured`` on; asked
                where it fails, for the first of them that does.

        Raises:
            ParityError: It answers otherwise; the first step that does is named.
        """
        if self._outputs:
            proof = self._proof(self._outputs, self._batches)

            def check(name: str, run: RunBatches) -> None:
                proof.check(name, run(self._batches), tell(name, self._batches, proof))

            check("captured", earlier["captured"])
            try:
                check(hop, run)
            except ParityError:
                proof.hops.clear()
                for name, run_earlier in earlier.items():
                    check(name, run_earlier)
                raise
            self._leave_out_unsteady(proof)
        ranges, agreed = ({}, {}) if self._precision == "int8" else self._climb(run)
        held = tuple(kind for kind in self._batches.kinds if kind not in self._not_finite)
        return EdgeReport(held, self._not_finite, ranges, agreed, self._why_not)

    def _leave_out_unsteady(self, proof: Proof) -> None:
        """Notes the kinds on which rounding moves every output so far that nothing is proven."""
        gates = proof.gates_of("artifact")
        for row, kind in enumerate(self._batches.kinds):
            moves = [
                moves
                for name, gate in gates.items()
                if (moves := _moves(self._outputs[name][row], gate, row)) is not None
            ]
            if moves and min(moves) > ROUNDING_FACTOR * PROVES_NOTHING and not self._narrowed:
                said = f"rounding alone moves the model by {min(moves) / ROUNDING_FACTOR:.1e} there"
                self._not_finite[kind] = said

    def _proof(self, outputs: Mapping[str, Array], batches: Batches) -> Proof:
        gates = measured_gates(self._captured, batches, outputs, self._samples, self._precision)
        by_hop = {"captured": gates.captured} | dict.fromkeys(self._narrowed, gates.narrowed)
        scores = gates.scores_by_hop(self._narrowed)
        return Proof(
            outputs, gates.fp32, by_hop, self._narrowed, self._samples, batches.kinds, scores
        )

    def _climb(self, run: RunBatches) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
        """Finds how far the whole numbers of inputs without a table may reach."""
        ranges: dict[str, tuple[int, int]] = {}
        agreed: dict[str, int] = {}
        for spec in self._specs:
            if np.dtype(spec.dtype).kind != "i" or spec.name in self._tables:
                continue
            low, high, bounded = self._range_of(spec, run)
            if bounded:
                ranges[spec.name] = low, high
            else:
                agreed[spec.name] = high
        return ranges, agreed

    def _range_of(self, spec: TensorSpec, run: RunBatches) -> tuple[int, int, bool]:
        """Returns the range on which an input agrees, and whether something ended it.

        It begins with that of the samples and of the edges, which were held already.
        """
        held = [self._first[spec.name], *self._batches.arrays[spec.name]]
        low, high = (int(pick(list(map(pick, held)))) for pick in (np.min, np.max))
        top = int(np.iinfo(spec.dtype).max)
        signed = True
        for rung in sorted({*(rung for rung in RUNGS if rung <= top), min(top, RUNGS[-1])}):
            if rung < max(-low, high):
                continue
            if signed and self._agrees(spec, -rung, rung, run):
                low, high = -rung, rung
                continue
            signed = False
            if not self._agrees(spec, 0, rung, run):
                return low, high, True
            low, high = min(low, 0), rung
        return low, high, not signed

    def _agrees(self, spec: TensorSpec, low: int, high: int, run: RunBatches) -> bool:
        """Tells whether the last step answers as eager on whole numbers of a range."""
        own = self._first[spec.name]
        if own.size > 1:
            return self._agrees_on(spec.name, between(own, low, high), run)
        return all(self._agrees_on(spec.name, np.full_like(own, end), run) for end in (low, high))

    def _agrees_on(self, name: str, values: Array, run: RunBatches) -> bool:
        """Tells whether the last step answers as eager on these values of an input."""
        batch = self._first | {name: values}
        one = _joined(tuple(batch), {"whole numbers": batch})
        try:
            wanted = run_reference(self._model, one, twice=False).outputs
            found = run(one)
        except (ExporterError, RuntimesError):
            return False
        tolerance = _COARSE.get(self._precision, _COARSE["fp32"])
        return all(_near(wanted[name], found[name], tolerance) for name in wanted)


def _near(wanted: Array, found: Array, tolerance: float) -> bool:
    """Tells whether outputs (batches, …) are equal, or off by a share of the scale around each."""
    if wanted.shape != found.shape or wanted.dtype.kind in "iub":
        return np.array_equal(wanted, found)
    around = Neighbourhoods(wanted)
    allowed = around.allowed(around.noise(np.zeros(wanted.shape)), tolerance)
    most = worst(wanted, found, allowed)
    return most is None or most.share <= 1


def _moves(expected: Array, gate: Gate, row: int) -> float | None:
    """Returns what share of its scale half of an output's values may be off by at least."""
    if gate.allowed is None or gate.noise is None or not expected.size:
        return None
    around = Neighbourhoods(expected[None])
    scale = max(float(np.median(one)) for one in around.scales)
    kept = gate.allowed[row][None][~around.fills]
    return float(np.median(kept)) / scale if scale > 0 and kept.size else None


def _why_not(config: CompileConfig, cap: TokenCapUse | None) -> str:
    """Says why no edges are tried; '' where they are."""
    if config.inputs is not None:
        return "the samples given are what it is held to"
    if config.precision == "int8":
        return "the gate of int8 is one over all samples"
    return "other inputs may not fit under the cap" if cap is not None else ""


def _stacked(outputs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Joins outputs (batches, …) of several runs."""
    names = outputs[0] if outputs else ()
    return {name: np.concatenate([each[name] for each in outputs]) for name in names}


def _joined(names: tuple[str, ...], kinds: Mapping[str, Mapping[str, Array]]) -> Batches:
    """Returns the batches of some kinds, one each."""
    arrays = {
        name: np.stack([batch[name] for batch in kinds.values()]) if kinds else np.zeros((0, 1))
        for name in names
    }
    return Batches(names, arrays, len(kinds), None, "edges", tuple(kinds))
