"""Distinguishes a near-tie that a stage crossed from an error.

A stage that fails its gate is replayed with eager's decisions as inputs
(``torch_passes.graph.decisions``). It passes on a batch only if all of these hold, and there only
on the samples in which a decision falls differently:

* in the replay its outputs pass the gate: its arithmetic is right;
* each score that it decides on is eager's, within what its own neighbourhood allows, and it decides
  right on its own scores (``decision_margins``);
* some decision of its own differs from eager's. In a half precision none needs to differ: the
replay rounds other numbers, and a near-tie may fall as eager's does. But some choice has to be so
near a tie that its score error could have turned it.

A decision that is made for each sample by itself is judged for each; another speaks for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.gates import HALF_TYPES
from tokexport.exporter.parity.proof import Proof, ReplayResult, Ties
from tokexport.exporter.rounding.score_rounding import Scores
from tokexport.exporter.ties.decision_margins import DecisionDiff, compare_decision
from tokexport.exporter.ties.held_scores import Allowance, hold_scores
from tokexport.graph_passes.torch_passes.canonicalize.widen_half import half_lines
from tokexport.graph_passes.torch_passes.graph.decision_kinds import Decision, DecisionKind
from tokexport.graph_passes.torch_passes.graph.decisions import ReplayGraph, expose_values
from tokexport.runtimes.arrays import Array

#: Runs a replay graph on batches that hold the decisions too; returns (batches, …) by name.
RunReplay = Callable[[Batches], dict[str, Array]]


#: The stages whose decisions read the scores that they show: kernels come after them.
_BEFORE_KERNELS: Final = ("captured", "rewritten", "onnx")


def tie_search(
    captured: GraphModule, batches: Batches, proof: Proof, stage: str, precision: str = "fp32"
) -> TieSearch:
    """Returns the search for ties of a stage.

    Args:
        captured: The traced model, unlifted, before any pass.
        batches: All batches that the proof is about.
        proof: Compares the stage.
        stage: The stage.
        precision: The precision of the stages in a reduced one.
    """
    narrowed = proof.is_narrowed(stage)
    return TieSearch(
        captured,
        batches,
        lambda found, rows: proof.within(stage, found, rows),
        proof.score_tolerance(stage),
        half=narrowed or bool(half_lines(captured.graph)),
        samples=proof.tie_free.shape[1],
        errors=proof.score_errors(stage),
        computed_in=HALF_TYPES.get(precision, "float32") if narrowed else "float32",
        matches_anew=stage not in _BEFORE_KERNELS,
    )


class TieSearch:
    """Finds whether ties explain the failure of a stage.

    Args:
        captured: The traced model, unlifted, before any pass.
        batches: All batches of the reference.
        within: Returns whether outputs (batches, …) of those batches lie within the gates, for
            each.
        tolerance: How far scores may be off, as a share of the scale around them.
        half: Whether the stage computes in a half precision.
        samples: How many samples a batch has.
        errors: What rounding does to scores, where that is more: by their value in the traced graph
            and by batch.
        computed_in: The precision that the stage computes in.
        matches_anew: Whether a match of the stage may compute the scores that it decides on, and
            not read those that the stage shows: what comes behind the emitted ONNX has kernels for
            that.

    Attributes:
        half: Whether the stage computes in a half precision.
    """

    def __init__(
        self,
        captured: GraphModule,
        batches: Batches,
        within: Callable[[Mapping[str, Array], Sequence[int]], list[bool]],
        tolerance: float,
        *,
        half: bool = False,
        samples: int = 1,
        errors: Scores | None = None,
        computed_in: str = "float32",
        matches_anew: bool = True,
    ) -> None:
        self._captured = captured
        self._names = {
            n.name for n in captured.graph.nodes if n.op in ("call_function", "get_attr")
        }
        self._batches = batches
        self._within = within
        self.half = half
        self._errors = errors or {}
        self._matches_anew = matches_anew
        self._allowance = Allowance(tolerance, samples=samples, computed_in=computed_in)
        self._kinds = {row: rows for rows in batches.by_kind().values() for row in rows}

    def judge(self, replay: ReplayGraph, run: RunReplay, failed: Sequence[int]) -> ReplayResult:
        """Replays a stage on the batches it failed on, and judges its decisions.

        Args:
            replay: The rewritten graph whose decisions are inputs.
            run: Runs what the stage makes of it.
            failed: The batches.
        """
        if not replay.decisions:
            return ReplayResult({}, None)
        if lost := self.lost(replay):
            return ReplayResult({}, None, lost)
        eager = self.eager_values(replay, failed)
        batches = selected(
            self._batches, failed, {name: eager[name] for name in replay.decision_inputs}
        )
        found = run(batches)
        outputs = {name: found[name] for name in replay.outputs}
        inside = self._within(outputs, failed)
        if not all(inside):
            return ReplayResult(outputs, None, "with eager's decisions as inputs it is off as well")
        return replace(self._judge(replay, eager, found, failed), outputs=outputs)

    def lost(self, replay: ReplayGraph) -> str:
        """Returns which scores or decisions are nowhere in the traced graph; '' for none."""
        unknown = [name for name in replay.sources if self._source(replay, name) is None]
        if not unknown:
            return ""
        lines = [d.line or d.operator for d in replay.decisions if {*d.scores} & {*unknown}]
        return f"what eager decides at {lines[0] if lines else 'it'} is lost"

    def differences(
        self,
        replay: ReplayGraph,
        eager: Mapping[str, Array],
        found: Mapping[str, Array],
        rows: Sequence[int],
    ) -> Iterator[tuple[Decision, DecisionDiff]]:
        """Yields how each decision of each batch falls with eager's decisions before it.

        Args:
            replay: The rewritten graph whose decisions are inputs.
            eager: Scores and decisions of eager, (rows, …) by name in the replay graph.
            found: What the replay gave, (rows, …).
            rows: The batches.
        """
        for row, batch in enumerate(rows):
            one, other = self._of_batch(eager, found, row, batch)
            for decision in replay.decisions:
                for _, diff in self._diffs(replay, decision, one, other, batch):
                    yield decision, diff

    def _of_batch(
        self, eager: Mapping[str, Array], found: Mapping[str, Array], row: int, batch: int
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Returns the inputs of a batch with what eager, and what the replay, gave on it."""
        inputs = {name: self._batches.arrays[name][batch] for name in self._batches.names}
        pair = [
            inputs | {name: array[row] for name, array in arrays.items()}
            for arrays in (eager, found)
        ]
        return pair[0], pair[1]

    def _judge(
        self,
        replay: ReplayGraph,
        eager: Mapping[str, Array],
        found: Mapping[str, Array],
        failed: Sequence[int],
    ) -> ReplayResult:
        """Compares every decision of every batch with eager's."""
        ties: list[tuple[Decision, DecisionDiff]] = []
        samples: list[tuple[int, int]] = []
        for row, batch in enumerate(failed):
            one, other = self._of_batch(eager, found, row, batch)
            diffs = [
                (decision, places, diff)
                for decision in replay.decisions
                for places, diff in self._diffs(replay, decision, one, other, batch)
            ]
            for decision, _, diff in diffs:
                if not diff.is_tie:
                    return ReplayResult({}, None, f"{_named(decision)} is no tie: {diff.why_not}")
            flipped = [(decision, diff) for decision, _, diff in diffs if diff.flips]
            near = [(decision, diff) for decision, _, diff in diffs if diff.is_near]
            if not flipped and not (self.half and near):
                others = [(decision, diff) for decision, _, diff in diffs if self.half]
                return ReplayResult({}, None, _no_tie(batch, others))
            ties += flipped or near
            tied = {
                place for _, places, diff in diffs if self._may_differ(diff) for place in places
            }
            samples += [(batch, place) for place in sorted(tied)]
        return ReplayResult(
            {},
            Ties(
                batches=tuple(failed),
                flips=sum(diff.flips for _, diff in ties),
                margin=max((diff.margin for _, diff in ties), default=0.0),
                score_error=max((diff.score_error for _, diff in ties), default=0.0),
                decisions=tuple(dict.fromkeys(_named(decision) for decision, _ in ties)),
                samples=tuple(samples),
            ),
        )

    def _diffs(
        self,
        replay: ReplayGraph,
        decision: Decision,
        eager: Mapping[str, Array],
        stage: Mapping[str, Array],
        batch: int,
    ) -> Iterator[tuple[Sequence[int], DecisionDiff]]:
        """Yields how a decision fell, with the samples that it speaks for.

        One that is made for each sample by itself is judged for each; another speaks for all.
        """
        scores = [
            hold_scores(eager[name], stage[name], self._allowed(replay, decision, name, batch))
            for name in decision.scores
        ]
        count = self._allowance.samples
        names = {*decision.replayed.values(), *decision.own.values()}
        values = [one[name] for one in (eager, stage) for name in names if name in one]
        shapes = [one.eager.shape for one in scores] + [value.shape for value in values]
        across = decision.kind is DecisionKind.ORDER and not decision.dim
        if count == 1 or across or any(shape[:1] != (count,) for shape in shapes):
            yield range(count), compare_decision(decision, scores, eager, stage)
            return
        for sample in range(count):
            part = slice(sample, sample + 1)
            own = [each.part(part) for each in scores]
            cut = [
                {name: one[name][part] for name in names if name in one} for one in (eager, stage)
            ]
            yield (sample,), compare_decision(decision, own, *cut)

    def _allowed(self, replay: ReplayGraph, decision: Decision, name: str, batch: int) -> Allowance:
        """Returns the tolerance of a score: the rounding error on its kind of inputs."""
        source = self._source(replay, name) if name in replay.sources else None
        measured = self._errors.get(source, {}) if source is not None else {}
        alike = {row: far for row, far in measured.items() if row in self._kinds[batch]}
        anew = self.half or (self._matches_anew and decision.kind is DecisionKind.MATCH)
        return replace(
            self._allowance, measured=alike or measured, batch=batch, decides_on_shown=not anew
        )

    def _may_differ(self, diff: DecisionDiff) -> bool:
        return diff.flips > 0 or (self.half and diff.is_near)

    def _source(self, replay: ReplayGraph, name: str) -> str | None:
        """Returns the name that a score or a decision has in the captured graph."""
        return next((one for one in replay.sources[name].names if one in self._names), None)

    def eager_values(self, replay: ReplayGraph, failed: Sequence[int]) -> dict[str, Array]:
        """Returns scores and decisions of eager, (batches, …) by name in the replay graph."""
        sources = {name: self._source(replay, name) for name in replay.sources}
        wanted = [source for source in dict.fromkeys(sources.values()) if source is not None]
        shown = expose_values(self._captured, wanted)
        rows = []
        for batch in failed:
            inputs = {name: self._batches.arrays[name][batch] for name in self._batches.names}
            with torch.no_grad():
                values = dict(zip(wanted, shown(*tensors_of(inputs)), strict=True))
            by_name = {
                name: _as_array(values[source]) for name, source in sources.items() if source
            }
            rows.append({n: _unspread(a, replay.sources[n].shape) for n, a in by_name.items()})
        return {name: np.stack([row[name] for row in rows]) for name in sources}


def _as_array(tensor: Tensor) -> Array:
    """Returns the values of a tensor; of a half type, which numpy may not have, in float32."""
    found: Array = (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
    return found


def _unspread(array: Array, shape: tuple[int, ...]) -> Array:
    """Removes the further axes that a value was broadcast over."""
    for _ in range(array.ndim - len(shape)):
        array = array[..., 0]
    return array


def selected(batches: Batches, rows: Sequence[int], decided: Mapping[str, Array]) -> Batches:
    """Returns some batches with the decisions that a replay graph takes as inputs."""
    arrays = {name: batches.arrays[name][list(rows)] for name in batches.names}
    return replace(
        batches,
        names=(*batches.names, *decided),
        arrays={**arrays, **decided},
        labels=None,
    )


def _no_tie(batch: int, diffs: Sequence[tuple[Decision, DecisionDiff]]) -> str:
    """Returns that a batch holds no tie, with the decision nearest to one."""
    if not diffs:
        return f"no decision of batch {batch} falls differently"
    decision, diff = min(diffs, key=lambda each: each[1].tie_gap)
    return (
        f"no decision of batch {batch} is near a tie: in {_named(decision)} the nearest choices "
        f"are {diff.tie_gap:.1e} of the scale of the scores apart, which are off by "
        f"{diff.score_error:.1e}"
    )


def _named(decision: Decision) -> str:
    return f"{decision.operator} at {decision.line}" if decision.line else decision.operator
