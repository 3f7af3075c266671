"""Tells a near-tie that fell the other way from an error.

A hop that leaves its gate is run once more, told what eager decided (``graph_passes.decisions``).
It is excused on a batch where all of this holds, and on no other, and there on those samples alone
in which a decision falls differently:

* told so, its outputs lie within the gate: its arithmetic is right;
* the scores it decides on are eager's, within the gate's tolerance;
* some decision of its own differs from eager's, and none by a margin beyond what that difference of
  the scores explains (``decision_margins``). In a half precision none needs to differ: told, it
  rounds other numbers than before, and a choice on the edge may fall right. But some choice has to
  be so near the edge that the difference of its scores could have turned it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from tokexport.exporter.decision_margins import Fall, held_against
from tokexport.exporter.inputs import Batches
from tokexport.exporter.parity import Ties, ToldRun
from tokexport.exporter.reference import tensors_of
from tokexport.exporter.rounding import Scores
from tokexport.graph_passes.decisions import Decision, ToldGraph, show
from tokexport.runtimes.base import Array

#: Runs a told graph on batches that hold the told inputs too; gives (batches, …) by name.
RunTold = Callable[[Batches], dict[str, Array]]


class TieSearch:
    """Finds out whether ties explain what a hop answers.

    Args:
        captured: The traced model, unlifted, before any pass.
        batches: All batches of the reference.
        within: Tells whether outputs (batches, …) of those batches lie within the gates, for each.
        tolerance: How far scores may be off, as a share of their scale.
        half: Whether the hop computes in a half precision.
        samples: How many samples a batch has.
        errors: How far single scores may be off where that is more, absolute numbers by their value
            in the traced graph and by batch.
    """

    def __init__(
        self,
        captured: GraphModule,
        batches: Batches,
        within: Callable[[Mapping[str, Array], Sequence[int]], list[bool]],
        tolerance: float,
        half: bool = False,
        samples: int = 1,
        errors: Scores | None = None,
    ) -> None:
        self._captured = captured
        self._names = {node.name for node in captured.graph.nodes if node.op == "call_function"}
        self._batches = batches
        self._within = within
        self._tolerance = tolerance
        self._half = half
        self._samples = samples
        self._errors = errors or {}

    def ask(self, told: ToldGraph, run: RunTold, failed: Sequence[int]) -> ToldRun:
        """Runs a hop told what eager decided on the batches it failed on, and judges it.

        Args:
            told: The rewritten graph whose decisions are inputs.
            run: Runs what the hop makes of it.
            failed: The batches.
        """
        if not told.decisions:
            return ToldRun({}, None)
        unknown = [name for name in told.sources if self._source(told, name) is None]
        if unknown:
            lines = [d.line or d.operator for d in told.decisions if {*d.scores} & {*unknown}]
            return ToldRun({}, None, f"what eager decides at {lines[0] if lines else 'it'} is lost")
        eager = self.eager_values(told, failed)
        batches = selected(self._batches, failed, {name: eager[name] for name in told.told})
        found = run(batches)
        outputs = {name: found[name] for name in told.outputs}
        inside = self._within(outputs, failed)
        if not all(inside):
            return ToldRun(outputs, None, "told what eager decided, it is off as well")
        return replace(self._judge(told, eager, found, failed), outputs=outputs)

    def _judge(
        self,
        told: ToldGraph,
        eager: Mapping[str, Array],
        found: Mapping[str, Array],
        failed: Sequence[int],
    ) -> ToldRun:
        """Holds every decision of every batch to eager's."""
        ties: list[tuple[Decision, Fall]] = []
        samples: list[tuple[int, int]] = []
        for row, batch in enumerate(failed):
            inputs = {name: self._batches.arrays[name][batch] for name in self._batches.names}
            one = inputs | {name: array[row] for name, array in eager.items()}
            other = inputs | {name: array[row] for name, array in found.items()}
            falls = [(d, held_against(d, one, other)) for d in told.decisions]
            for decision, fall in falls:
                tolerance = self._tolerance_of(told, decision, fall, batch)
                if not fall.is_tie(tolerance):
                    return ToldRun({}, None, _said(decision, fall, tolerance))
            flipped = [(decision, fall) for decision, fall in falls if fall.flips]
            near = [(decision, fall) for decision, fall in falls if fall.is_near]
            if not flipped and not (self._half and near):
                return ToldRun({}, None, _no_tie(batch, falls if self._half else ()))
            ties += flipped or near
            with_ties = np.any([self._undecided(d, fall, one, other) for d, fall in falls], axis=0)
            samples += [(batch, int(sample)) for sample in np.flatnonzero(with_ties)]
        return ToldRun(
            {},
            Ties(
                batches=tuple(failed),
                flips=sum(fall.flips for _, fall in ties),
                margin=max((fall.margin for _, fall in ties), default=0.0),
                noise=max((fall.noise for _, fall in ties), default=0.0),
                decisions=tuple(dict.fromkeys(_named(decision) for decision, _ in ties)),
                samples=tuple(samples),
            ),
        )

    def _tolerance_of(self, told: ToldGraph, decision: Decision, fall: Fall, batch: int) -> float:
        """Returns how far the scores of a decision may be off, as a share of their scale."""
        most = 0.0
        for name in decision.scores:
            source = self._source(told, name) if name in told.sources else None
            by_batch = self._errors.get(source, {}) if source is not None else {}
            most = max(most, by_batch.get(batch, max(by_batch.values(), default=0.0)))
        return max(self._tolerance, most / fall.scale)

    def _undecided(
        self,
        decision: Decision,
        fall: Fall,
        eager: Mapping[str, Array],
        step: Mapping[str, Array],
    ) -> Array:
        """Tells for each sample of a batch whether a decision falls differently, or might in half.

        One that is not made for each sample by itself speaks, as it fell in all, for all of them.
        """
        names = {*decision.scores, *decision.told.values(), *decision.own.values()}
        values = [one[name] for one in (eager, step) for name in names if name in one]
        count = self._samples
        if count == 1 or any(value.shape[:1] != (count,) for value in values):
            return np.full(count, self._may_differ(fall))
        return np.array(
            [
                self._may_differ(
                    held_against(decision, _cut(eager, names, i), _cut(step, names, i))
                )
                for i in range(count)
            ]
        )

    def _may_differ(self, fall: Fall) -> bool:
        return fall.flips > 0 or (self._half and fall.is_near)

    def _source(self, told: ToldGraph, name: str) -> str | None:
        """Returns the value of the captured graph that a score or a decision was there."""
        return next((one for one in told.sources[name].names if one in self._names), None)

    def eager_values(self, told: ToldGraph, failed: Sequence[int]) -> dict[str, Array]:
        """Returns scores and decisions of eager, (batches, …) under the told graph's names."""
        sources = {name: self._source(told, name) for name in told.sources}
        wanted = [source for source in dict.fromkeys(sources.values()) if source is not None]
        shown = show(self._captured, wanted)
        rows = []
        for batch in failed:
            inputs = {name: self._batches.arrays[name][batch] for name in self._batches.names}
            with torch.no_grad():
                values = dict(zip(wanted, shown(*tensors_of(inputs)), strict=True))
            by_name = {
                name: _as_array(values[source]) for name, source in sources.items() if source
            }
            rows.append({n: _unspread(a, told.sources[n].shape) for n, a in by_name.items()})
        return {name: np.stack([row[name] for row in rows]) for name in sources}


def _cut(values: Mapping[str, Array], names: Collection[str], sample: int) -> dict[str, Array]:
    """Returns the values of these names for one sample, as a batch of it alone."""
    return {name: values[name][sample : sample + 1] for name in names if name in values}


def _as_array(tensor: Tensor) -> Array:
    """Returns the values of a tensor; of a half type, which numpy may not have, in float32."""
    found: Array = (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
    return found


def _unspread(array: Array, shape: tuple[int, ...]) -> Array:
    """Takes away the further axes that a value was spread over."""
    for _ in range(array.ndim - len(shape)):
        array = array[..., 0]
    return array


def selected(batches: Batches, rows: Sequence[int], told: Mapping[str, Array]) -> Batches:
    """Returns some batches with what a told graph takes beside the inputs."""
    arrays = {name: batches.arrays[name][list(rows)] for name in batches.names}
    return replace(
        batches,
        names=(*batches.names, *told),
        arrays={**arrays, **told},
        labels=None,
    )


def _said(decision: Decision, fall: Fall, tolerance: float) -> str:
    """Says why a decision is no tie."""
    if fall.noise > tolerance:
        return (
            f"the scores of {_named(decision)} are off by {fall.noise:.1e} of their scale, and "
            f"{tolerance:.1e} is allowed"
        )
    return (
        f"{_named(decision)} chooses what is worse by {fall.margin:.1e} of the scale of its "
        f"scores, which are off by {fall.noise:.1e} only"
    )


def _no_tie(batch: int, falls: Sequence[tuple[Decision, Fall]]) -> str:
    """Says that a batch holds no tie, and what comes nearest to one of what might be none."""
    if not falls:
        return f"no decision of batch {batch} falls differently"
    decision, fall = min(falls, key=lambda each: each[1].edge - 2 * each[1].noise)
    return (
        f"no decision of batch {batch} is near a tie: in {_named(decision)} the nearest choices "
        f"are {fall.edge:.1e} of the scale of the scores apart, which are off by {fall.noise:.1e}"
    )


def _named(decision: Decision) -> str:
    return f"{decision.operator} at {decision.line}" if decision.line else decision.operator
