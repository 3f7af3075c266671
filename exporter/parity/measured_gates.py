"""Measures the rounding error of a traced model's outputs, and sets their gates by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch.fx import GraphModule

from tokexport.exporter.errors import GateError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.default_gates import set_gates
from tokexport.exporter.parity.gates import HALF_TYPES, Gate
from tokexport.exporter.rounding.local_rounding import (
    ROUNDING_FACTOR,
    LocalRounding,
    local_rounding,
    rows_to_measure,
)
from tokexport.exporter.rounding.measure import measure_rounding
from tokexport.exporter.rounding.score_rounding import Scores
from tokexport.runtimes.arrays import Array

#: Where rounding moves most neighbourhoods by more of their scale, any output would pass.
PROVES_NOTHING: Final = 0.03
#: The same of a model that itself computes in a half type.
_HALF_PROVES_NOTHING: Final = 0.15
#: The same of a half type that is asked for.
_NARROWED_PROVES_NOTHING: Final = 0.25


@dataclass(frozen=True)
class MeasuredGates:
    """The gates of the stages of a compile, by output.

    Attributes:
        captured: Those of the traced graph: a fault of the trace moves its distance from float64
            too, and must not widen its own gate, so that distance is left out.
        fp32: Those of the stages in fp32 after it.
        narrowed: Those of the stages in the precision asked for.
        scores: How far rounding moves what decisions are about, by its value and batch.
        narrowed_scores: The same in the precision asked for.
        rounding: What rounding does to the floating outputs, by their names.
    """

    captured: dict[str, Gate]
    fp32: dict[str, Gate]
    narrowed: dict[str, Gate]
    scores: Scores
    narrowed_scores: Scores
    rounding: Mapping[str, LocalRounding]

    def scores_by_stage(self, narrowed: Sequence[str]) -> dict[str, Scores]:
        """Returns how far scores may be off at the stages, as a proof takes it."""
        return {"": self.scores} | dict.fromkeys(narrowed, self.narrowed_scores)


def measured_gates(
    captured: GraphModule,
    batches: Batches,
    outputs: Mapping[str, Array],
    samples: int,
    precision: str = "fp32",
    atol: float | None = None,
    advice: str = "",
) -> MeasuredGates:
    """Returns the gates of every stage.

    Args:
        captured: The traced model, unlifted, before any pass.
        batches: The inputs.
        outputs: What eager gave, (batches, …) by name.
        samples: How many samples a batch has.
        precision: The precision that the artifact computes in.
        atol: An absolute tolerance that the user asked for.
        advice: What to do where a stage in that precision fails its gate.
    """
    rows, half = rows_to_measure(batches), HALF_TYPES.get(precision)
    int8 = precision == "int8" and atol is None
    rounding = measure_rounding(captured, batches, outputs, rows, half, int8, samples)
    by_chance = local_rounding(outputs, rounding, batches, samples, with_float64=False)
    whole = local_rounding(outputs, rounding, batches, samples)
    captured_gates = set_gates(outputs, by_chance, "fp32", atol, batch=samples)
    fp32 = narrowed = set_gates(outputs, whole, "fp32", atol, batch=samples)
    if precision != "fp32":
        narrowed = set_gates(outputs, whole, precision, atol, batch=samples)
    advised = {name: replace(gate, advice=advice) for name, gate in narrowed.items()}
    scores = _times(rounding.scores, ROUNDING_FACTOR)
    narrowed_scores = _times(rounding.half_scores, ROUNDING_FACTOR) if half else scores
    return MeasuredGates(captured_gates, fp32, advised, scores, narrowed_scores, whole)


def _times(scores: Scores, factor: float) -> Scores:
    return {
        name: {row: far.times(factor) for row, far in by_row.items()}
        for name, by_row in scores.items()
    }


def largest_rounding_move(half: bool, precision: str = "fp32") -> float:
    """Returns the share of its scale up to which rounding may move an output that is proven.

    Args:
        half: Whether the model itself computes in a half type somewhere.
        precision: The precision of the stage.
    """
    if precision in HALF_TYPES:
        return _NARROWED_PROVES_NOTHING
    return _HALF_PROVES_NOTHING if half else PROVES_NOTHING


def require_stable_outputs(gates: Mapping[str, Gate], half: bool, precision: str = "fp32") -> None:
    """Refuses outputs that rounding moves by a large part of their size.

    Args:
        gates: The gates of a stage.
        half: Whether the model itself computes in a half type somewhere.
        precision: The precision that the stage computes in.

    Raises:
        GateError: An output moves so far that nothing can be proven equal to it.
    """
    for name, gate in gates.items():
        if gate.rounding_error is not None and gate.moves > largest_rounding_move(half, precision):
            raise GateError(
                f"Rounding alone moves output '{name}' of the model itself by {gate.moves:.1e} of "
                "its scale, so nothing can be proven equal to it.",
                fix=gate.advice
                or "Give trained weights and real inputs, or say with --atol what is allowed.",
            )
