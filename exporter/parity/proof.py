"""Compares every stage with the reference at the gates of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from tokexport.exporter.errors import GateError, listed
from tokexport.exporter.parity.distribution import Distribution, distributions
from tokexport.exporter.parity.gates import Gate
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.comparison import Comparison
from tokexport.runtimes.tolerances.neighbourhoods import Worst

if TYPE_CHECKING:
    from tokexport.exporter.rounding.score_rounding import Scores


@dataclass(frozen=True)
class Ties:
    """Decisions that fell differently at a stage because rounding could decide them.

    Attributes:
        batches: The batches with one of these decisions.
        flips: How many positions or truth values differ in them; in a half precision it may be
            none, where choices are near enough for rounding to turn them.
        margin: The largest margin, as a share of the scale of the scores.
        score_error: The largest difference of the stage's scores from eager's, as a share of their
            scale.
        decisions: Which decisions: the operator and the line it came from.
        samples: The samples, each a batch and its place there, in which a decision falls
            differently, or in a half precision might.
    """

    batches: tuple[int, ...]
    flips: int
    margin: float
    score_error: float
    decisions: tuple[str, ...]
    samples: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class ReplayResult:
    """The result of a replay: a stage's outputs with eager's decisions as inputs.

    Attributes:
        outputs: Its outputs, (batches of the replay, …) by name.
        ties: What fell differently by itself; None where ties do not explain the failure.
        why_not: Why they do not, a clause; '' where they do, or where nothing is decided.
        own: Eager's outputs with the stage's own decisions as inputs, like ``outputs``; empty where
            the decisions do not settle, None where they are not needed.
    """

    outputs: Mapping[str, Array]
    ties: Ties | None
    why_not: str = ""
    own: Mapping[str, Array] | None = None


#: Replays a stage on the batches it failed on.
ReplayStage = Callable[[Sequence[int]], ReplayResult]


@dataclass(frozen=True)
class StageResult:
    """One stage, compared with the reference.

    Attributes:
        name: The stage: ``rewritten``, ``onnx``, ``artifact``.
        comparisons: The comparison of every output, by the output's name; on the batches of
            ``ties``, that of the replay.
        passed: Whether every output lies within its gate.
        detail: What failed and by how much; empty when the stage passed.
        ties: The near-ties that it crossed; None without any.
        gates: The gate of every output at this stage.
        outside: The batches that lie outside a gate by themselves, where it holds over all.
        worst: The value of every output that uses most of what it is allowed, where values are
            held by themselves; its index begins with the batch.
    """

    name: str
    comparisons: dict[str, Comparison]
    passed: bool
    detail: str
    ties: Ties | None = None
    gates: Mapping[str, Gate] = field(default_factory=dict)
    outside: tuple[int, ...] = ()
    worst: Mapping[str, Worst] = field(default_factory=dict)


#: The stages in order, and what an error first seen at one of them means.
STAGES: Final = {
    "captured": "The traced graph differs from the model: tracing fixed something that varies.",
    "rewritten": "The rewritten graph differs from the traced one: a torch pass is wrong.",
    "onnx": "The ONNX differs from the rewritten graph: the translation of an operator is wrong.",
    "lowered": "The lowered ONNX differs from the emitted one: an ONNX pass is wrong.",
    "without kernels": "OpenVINO's own operators differ from the ONNX they were built from.",
    "artifact": "The artifact differs from the ONNX it was built from: a kernel or the runtime is "
    "off.",
}
_LOWERED_BY_ITSELF: Final = (
    "The artifact differs from the emitted ONNX: an ONNX pass, a kernel or the runtime is off."
)
_FIRST_NARROWED: Final = (
    "The stages before it compute in fp32: the reduced precision costs too much, or what brings it "
    "in is wrong."
)


def judge(
    name: str, expected: Mapping[str, Array], found: Mapping[str, Array], gates: Mapping[str, Gate]
) -> StageResult:
    """Compares what a stage gave with the reference, output by output.

    Args:
        name: The stage.
        expected: The reference outputs, (batches, …) each.
        found: What the stage gave for the same batches.
        gates: The gate of every output.
    """
    comparisons: dict[str, Comparison] = {}
    most: dict[str, Worst] = {}
    failures: list[str] = []
    for output, gate in gates.items():
        one, other = expected[output], found[output]
        if one.shape != other.shape or one.dtype != other.dtype:
            failures.append(
                f"output '{output}' is {other.dtype} {other.shape[1:]}, "
                f"eager gives {one.dtype} {one.shape[1:]}"
            )
            continue
        verdict = gate.judge(one, other)
        comparisons[output] = verdict.comparison
        if verdict.worst is not None:
            most[output] = verdict.worst
        if verdict.failure:
            failures.append(f"output '{output}' {verdict.failure}")
    detail = "; ".join(failures)
    return StageResult(name, comparisons, not failures, detail, gates=dict(gates), worst=most)


class ParityError(GateError):
    """A stage failed its gate.

    Args:
        stages: Every stage compared until then, the failed one last.
        first_narrowed: Whether that is the first stage in a reduced precision.
    """

    def __init__(self, stages: Sequence[StageResult], first_narrowed: bool = False) -> None:
        failed = stages[-1]
        passed = ", ".join(stage.name for stage in stages[:-1])
        advice = next((gate.advice for gate in failed.gates.values()), "")
        super().__init__(
            f"Parity failed at '{failed.name}': {failed.detail}.",
            where=_meaning(stages, first_narrowed)
            + (f" Passed before it: {passed}." if passed else ""),
            fix="No bundle was written. "
            + (advice or "--keep-stages leaves every stage for a closer look."),
        )
        self.stages = tuple(stages)


def _meaning(stages: Sequence[StageResult], first_narrowed: bool) -> str:
    """Returns what may be wrong where the last of some stages is the first that failed."""
    name = stages[-1].name
    if any(gate.unmeetable for gate in stages[-1].gates.values()):
        return "The tolerance asked for is below what float32 can meet, whatever is right."
    if first_narrowed:
        return _FIRST_NARROWED
    lowered = any(stage.name == "lowered" for stage in stages)
    return STAGES[name] if name != "artifact" or lowered else _LOWERED_BY_ITSELF


class Proof:
    """Compares every stage with the reference, in order; stops at the first that fails its gate.

    Args:
        expected: The reference outputs, (batches, …) each.
        gates: The gate of every output.
        by_stage: The gates of stages that have their own, by stage.
        narrowed: The stages that compute in a reduced precision.
        samples: How many samples a batch has: the leading axis of outputs that have one of that
            size.
        kinds: What kind of inputs every batch is, where they are of several.
        scores: How far scores that decide may be off, by stage: a number by value of the traced
            graph and batch; the stage '' stands for all others.

    Attributes:
        stages: The stages compared so far.
        distributions: How the errors of each of them are distributed, by output, near-ties counted
            in.
        tie_free: The samples (batches, samples) on which no stage decided a near-tie so that an
            output left its gate.
    """

    def __init__(
        self,
        expected: Mapping[str, Array],
        gates: Mapping[str, Gate],
        by_stage: Mapping[str, Mapping[str, Gate]] | None = None,
        narrowed: Sequence[str] = (),
        samples: int = 1,
        kinds: Sequence[str] = (),
        scores: Mapping[str, Scores] | None = None,
    ) -> None:
        self.expected = expected
        self.stages: list[StageResult] = []
        self.distributions: dict[str, dict[str, Distribution]] = {}
        (count,) = {len(array) for array in expected.values()}
        self.tie_free = np.ones((count, samples), bool)
        self._flipped_samples: dict[str, Array] = {}
        self._gates = gates
        self._by_stage = by_stage or {}
        self._narrowed = narrowed
        self._kinds = kinds
        self._scores = scores or {}

    def gates_of(self, stage: str) -> Mapping[str, Gate]:
        """Returns the gate of every output at a stage."""
        return self._by_stage.get(stage, self._gates)

    def score_tolerance(self, stage: str) -> float:
        """Returns how far scores that decide may be off at a stage, as a share of their scale."""
        return max(gate.score_tolerance for gate in self.gates_of(stage).values())

    def score_errors(self, stage: str) -> Scores:
        """Returns how far single scores may be off at a stage, absolute numbers."""
        return self._scores.get(stage) or self._scores.get("", {})

    def is_narrowed(self, stage: str) -> bool:
        """Returns whether a stage computes in a reduced precision."""
        return stage in self._narrowed

    def check(
        self, stage: str, found: Mapping[str, Array], replay: ReplayStage | None = None
    ) -> None:
        """Compares one stage.

        Args:
            stage: Its name.
            found: What it gave, (batches, …) by name.
            replay: Replays it; used only where it fails its gate. None for a gate over all samples
                together.

        Raises:
            ParityError: An output lies outside its gate, and no near-tie explains it.
        """
        gates = self.gates_of(stage)
        self.distributions[stage] = distributions(self.expected, found)
        result = judge(stage, self.expected, found, gates)
        compared = len(result.comparisons) == len(gates)
        if self.holds_over_all(stage) and compared:
            result = replace(result, outside=tuple(self._outside(stage, found)))
        if not result.passed and replay is not None and compared:
            result = self._replay(result, found, replay)
        if not result.passed and self._kinds:
            result = replace(result, detail=f"{result.detail}; on {self._worst_kind(result)}")
        self.stages.append(result)
        if not result.passed:
            narrowed = [each.name for each in self.stages if self.is_narrowed(each.name)]
            raise ParityError(self.stages, first_narrowed=narrowed == [stage])

    def _worst_kind(self, result: StageResult) -> str:
        """Names the kind of inputs on which the stage is farthest outside."""
        if not result.worst:
            return listed([*dict.fromkeys(self._kinds)])
        most = max(result.worst.values(), key=lambda each: each.share)
        return self._kinds[most.index[0]]

    def moves_every_sample(self) -> bool:
        """Returns whether a reduced precision flipped a decision of every sample."""
        masks = [
            self._flipped_samples[stage]
            for stage in self._narrowed
            if stage in self._flipped_samples
        ]
        return bool(masks) and bool(np.logical_or.reduce(masks).all())

    def hold_over_all(self, found: Mapping[str, Array], gates: Mapping[str, Gate]) -> StageResult:
        """Judges the last stage by gates over all samples, in place of those of single samples.

        Args:
            found: What it gave, (batches, …) by name.
            gates: The gate of every output, over all samples together.

        Raises:
            GateError: An output lies outside of them.
        """
        last = self.stages[-1].name
        result = judge(last, self.expected, found, gates)
        if not result.passed:
            raise GateError(
                f"Every sample crosses a near-tie, and over all samples together {result.detail}.",
                fix="No bundle was written. Give more samples with --inputs, or another --seed.",
            )
        self._by_stage = {**self._by_stage, last: gates}
        return result

    def holds_over_all(self, stage: str) -> bool:
        """Returns whether a stage has a gate over all samples together."""
        return any(gate.holds_over_all for gate in self.gates_of(stage).values())

    def holds_on(self, stage: str, found: Mapping[str, Array], rows: Sequence[int]) -> bool:
        """Returns whether outputs (batches, …) of some batches lie within the gates together."""
        return all(
            not gate.judge(self.expected[name][rows], found[name][rows], rows).failure
            for name, gate in self.gates_of(stage).items()
        )

    def within(self, stage: str, found: Mapping[str, Array], batches: Sequence[int]) -> list[bool]:
        """Returns for each of some batches whether the outputs (batches, …) pass the gates."""
        return [
            all(
                not gate.judge(self.expected[name][batch], found[name][row], batch).failure
                for name, gate in self.gates_of(stage).items()
            )
            for row, batch in enumerate(batches)
        ]

    def not_its_own(
        self, stage: str, own: Mapping[str, Array], found: Mapping[str, Array], rows: Sequence[int]
    ) -> str:
        """Returns why a stage differs from eager with the stage's decisions; '' if it agrees.

        Args:
            stage: The stage.
            own: Eager's outputs with the stage's decisions as inputs, (rows, …); empty where the
                decisions do not settle.
            found: What the stage gave, (batches, …).
            rows: The batches.
        """
        if not own:
            return "its decisions change each time that they are fed back"
        failures = []
        for name, gate in self.gates_of(stage).items():
            about = gate.about(own[name], list(rows))  # the reference of ``verify``, too
            if failure := about.judge(own[name], found[name][list(rows)]).failure:
                failures.append(f"output '{name}' {failure}")
        return "; ".join(failures)

    def _outside(self, stage: str, found: Mapping[str, Array]) -> list[int]:
        """Returns the batches whose own outputs lie outside the gates."""
        (count,) = {len(array) for array in found.values()}
        inside = self.within(stage, found, range(count))
        return [batch for batch in range(count) if not inside[batch]]

    def _gives_samples(self, stage: str) -> bool:
        """Returns whether every output has one value for each sample."""
        shapes = (self.expected[name].shape for name in self.gates_of(stage))
        return all(shape[1:2] == self.tie_free.shape[1:] for shape in shapes)

    def _samples_within(self, stage: str, found: Mapping[str, Array], batch: int) -> Array:
        """Returns for each sample of a batch whether its outputs lie within the gates.

        All are False where an output is not one value a sample.
        """
        samples = self.tie_free.shape[1]
        gates = self.gates_of(stage)
        if not self._gives_samples(stage):
            return np.zeros(samples, bool)
        inside = [
            all(
                not self._of_sample(gate, name, found, batch, sample)
                for name, gate in gates.items()
            )
            for sample in range(samples)
        ]
        return np.array(inside)

    def _of_sample(
        self, gate: Gate, name: str, found: Mapping[str, Array], batch: int, sample: int
    ) -> str:
        """Returns why one sample of an output fails its gate; '' if it passes."""
        one, other = self.expected[name][batch, sample], found[name][batch, sample]
        return gate.judge(one, other, (batch, sample)).failure

    def _replay(
        self, result: StageResult, found: Mapping[str, Array], run_replay: ReplayStage
    ) -> StageResult:
        """Judges a stage that failed by its replay."""
        failed = self._outside(result.name, found)
        replay = run_replay(failed)
        if replay.ties is None:
            why_not = f"; {replay.why_not}" if replay.why_not else ""
            return replace(result, detail=result.detail + why_not)
        for batch in failed:
            inside = self._samples_within(result.name, found, batch)
            tied = [sample for of, sample in replay.ties.samples if of == batch]
            unexplained = {*np.flatnonzero(~inside).tolist()} - {*tied}
            if self._gives_samples(result.name) and unexplained:
                why_not = f"no decision of sample {min(unexplained)} of batch {batch} is a near-tie"
                return replace(result, detail=f"{result.detail}; {why_not}")
            self.tie_free[batch] &= inside
            self._flipped_samples.setdefault(result.name, np.zeros_like(self.tie_free))[
                batch
            ] = ~inside
        if replay.own is not None and (
            why_not := self.not_its_own(result.name, replay.own, found, failed)
        ):
            why_not = f"with its own decisions as inputs eager differs too: {why_not}"
            return replace(result, detail=f"{result.detail}; {why_not}")
        mixed = {name: array.copy() for name, array in found.items()}
        for name, array in mixed.items():
            array[failed] = replay.outputs[name]
        judged = judge(result.name, self.expected, mixed, result.gates)
        return replace(judged, ties=replay.ties)
