"""What parity is judged by and what it found: a gate per output, a result per hop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tokexport.exporter.errors import GateError
from tokexport.runtimes.base import Array
from tokexport.runtimes.comparison import Comparison, compare, relative_error

if TYPE_CHECKING:
    from tokexport.exporter.float64_error import Float64Error


@dataclass(frozen=True)
class Gate:
    """How far an output may lie from the reference, and why that far.

    Attributes:
        tolerance: The largest difference allowed, as a share of ``scale``.
        eager_error: The difference of the fp32 eager model from itself in float64, as a share of
            ``scale``; None where the model has no float64 run.
        scale: The largest absolute value of the reference output.
        reason: One clause that says which rule gave the tolerance.
        from_eager: Whether that rule is the model's own distance from float64.
    """

    tolerance: float
    eager_error: float | None
    scale: float
    reason: str
    from_eager: bool = False


@dataclass(frozen=True)
class Ties:
    """Decisions that fell differently at a hop because rounding could decide them.

    Attributes:
        batches: The batches with such a decision.
        flips: How many positions or truth values differ in them.
        margin: The largest margin, as a share of the scale of the scores.
        noise: The largest difference of the hop's scores from eager's, as such a share.
        decisions: Which decisions: the operator and the line it came from.
    """

    batches: tuple[int, ...]
    flips: int
    margin: float
    noise: float
    decisions: tuple[str, ...]


@dataclass(frozen=True)
class ToldRun:
    """What a hop answered that was told how to decide.

    Attributes:
        outputs: Its outputs, (batches asked about, …) by name.
        ties: What fell differently by itself; None where ties do not explain the failure.
        why_not: Why they do not, a clause; '' where they do, or where nothing is decided.
    """

    outputs: Mapping[str, Array]
    ties: Ties | None
    why_not: str = ""


#: Runs a hop on the batches it failed on, told what eager decided.
TellHop = Callable[[Sequence[int]], ToldRun]


@dataclass(frozen=True)
class HopResult:
    """One step of the model's way, compared with the reference.

    Attributes:
        name: The step: ``rewritten``, ``onnx``, ``artifact``.
        comparisons: The comparison of every output, by the output's name; on the batches of
            ``ties``, of what the hop answers when it is told how to decide.
        passed: Whether every output lies within its gate.
        detail: What failed and by how much; empty when the hop passed.
        ties: The near-ties that fell the other way; None where there were none.
    """

    name: str
    comparisons: dict[str, Comparison]
    passed: bool
    detail: str
    ties: Ties | None = None


#: The hops in order, and what an error first seen at one of them means.
HOPS: Final = {
    "captured": "The traced graph differs from the model: tracing fixed something that varies.",
    "rewritten": "The rewritten graph differs from the traced one: a torch pass is wrong.",
    "onnx": "The ONNX differs from the rewritten graph: the translation of an operator is wrong.",
    "lowered": "The lowered ONNX differs from the emitted one: an ONNX pass is wrong.",
    "artifact": "The artifact differs from the ONNX it was built from: the runtime is off.",
}
#: The largest relative difference allowed by default when the precision is not fp32.
REDUCED_PRECISION_TOLERANCE: Final = {"fp16": 1e-2, "bf16": 5e-2}
#: The smallest fp32 tolerance; below it lies the noise of a different order of summation.
FP32_FLOOR: Final = 1e-5
#: A gate this wide lets any answer pass.
PROVES_NOTHING: Final = 0.1
#: How many times its own fp32 error a model may be off after compiling.
EAGER_ERROR_FACTOR: Final = 4.0


def set_gates(
    outputs: Mapping[str, Array], eager: Float64Error, precision: str, atol: float | None
) -> dict[str, Gate]:
    """Returns the gate of every output: max(1e-5, 4 × the fp32 error of eager itself) in fp32.

    Args:
        outputs: What the model answered, (batches, …) by name.
        eager: How far that is from float64.
        precision: The precision the artifact is to run in.
        atol: An absolute tolerance that the person asked for; it replaces the default of floating
            outputs. Whole numbers and booleans must be equal.
    """
    gates = {}
    for name, expected in outputs.items():
        error = None if eager.by_output is None else eager.by_output[name]
        scale = compare(expected, expected).scale
        if expected.dtype.kind in "iub":
            tolerance, reason = 0.0, "whole numbers are equal or they are not"
        elif atol is not None:
            tolerance, reason = atol / (scale or 1.0), f"--atol {atol:g}"
        elif precision != "fp32":
            tolerance, reason = (
                REDUCED_PRECISION_TOLERANCE[precision],
                f"the default of {precision}",
            )
        elif error is None:
            tolerance = FP32_FLOOR
            reason = f"the fp32 default; no float64 run, {eager.why_not}"
        else:
            tolerance = max(FP32_FLOOR, EAGER_ERROR_FACTOR * error)
            reason = f"max(1e-5, 4 × {error:.1e}, the distance of fp32 eager from float64)"
        from_eager = error is not None and tolerance == EAGER_ERROR_FACTOR * error
        gates[name] = Gate(tolerance, error, scale, reason, from_eager)
    return gates


def judge(
    name: str, expected: Mapping[str, Array], found: Mapping[str, Array], gates: Mapping[str, Gate]
) -> HopResult:
    """Compares what a hop gave with the reference, output by output.

    Args:
        name: The hop.
        expected: The reference outputs, (batches, …) each.
        found: What the hop gave for the same batches.
        gates: The gate of every output.
    """
    comparisons: dict[str, Comparison] = {}
    failures: list[str] = []
    for output, gate in gates.items():
        one, other = expected[output], found[output]
        if one.shape != other.shape or one.dtype != other.dtype:
            failures.append(
                f"output '{output}' is {other.dtype} {other.shape[1:]}, "
                f"eager gives {one.dtype} {one.shape[1:]}"
            )
            continue
        comparison = compare(one, other)
        comparisons[output] = comparison
        if not comparison.relative <= gate.tolerance:
            failures.append(
                f"output '{output}' is off by {comparison.relative:.2e} of its scale "
                f"{gate.scale:.3g}, and {gate.tolerance:.2e} is allowed"
            )
    return HopResult(name, comparisons, not failures, "; ".join(failures))


class ParityError(GateError):
    """A hop left the gate; ``hops`` holds every hop compared until then, the failed one last."""

    def __init__(self, hops: Sequence[HopResult]) -> None:
        failed = hops[-1]
        passed = ", ".join(hop.name for hop in hops[:-1])
        super().__init__(
            f"Parity failed at '{failed.name}': {failed.detail}.",
            where=f"{HOPS[failed.name]}" + (f" Passed before it: {passed}." if passed else ""),
            fix="No bundle was written. --keep-stages leaves every stage for a closer look.",
        )
        self.hops = tuple(hops)


class Proof:
    """Holds every hop to the reference, in order, and stops at the first that leaves its gate.

    Args:
        expected: The reference outputs, (batches, …) each.
        gates: The gate of every output.

    Attributes:
        hops: The hops compared so far.
        tied: The batches on which some hop decided a near-tie the other way.
    """

    def __init__(self, expected: Mapping[str, Array], gates: Mapping[str, Gate]) -> None:
        self.expected = expected
        self.gates = gates
        self.hops: list[HopResult] = []
        self.tied: set[int] = set()

    def check(self, hop: str, found: Mapping[str, Array], tell: TellHop | None = None) -> None:
        """Compares one hop.

        Args:
            hop: Its name.
            found: What it gave, (batches, …) by name.
            tell: Runs it again, told how to decide; asked only where it leaves its gate.

        Raises:
            ParityError: An output lies outside its gate, and no near-tie explains it.
        """
        result = judge(hop, self.expected, found, self.gates)
        if not result.passed and tell is not None and len(result.comparisons) == len(self.gates):
            result = self._told(result, found, tell)
        self.hops.append(result)
        if not result.passed:
            raise ParityError(self.hops)

    def within(self, found: Mapping[str, Array], batches: Sequence[int]) -> list[bool]:
        """Tells for each of some batches whether the outputs (batches, …) lie within the gates."""
        return [
            all(
                _within(self.expected[name][batch], found[name][row], gate)
                for name, gate in self.gates.items()
            )
            for row, batch in enumerate(batches)
        ]

    def _told(self, result: HopResult, found: Mapping[str, Array], tell: TellHop) -> HopResult:
        """Judges a hop that failed by what it gives when it is told how to decide."""
        (count,) = {len(array) for array in found.values()}
        inside = self.within(found, range(count))
        failed = [batch for batch in range(count) if not inside[batch]]
        told = tell(failed)
        if told.ties is None:
            why_not = f"; {told.why_not}" if told.why_not else ""
            return replace(result, detail=result.detail + why_not)
        self.tied |= set(failed)
        mixed = {name: array.copy() for name, array in found.items()}
        for name, array in mixed.items():
            array[failed] = told.outputs[name]
        return replace(judge(result.name, self.expected, mixed, self.gates), ties=told.ties)


def _within(expected: Array, found: Array, gate: Gate) -> bool:
    comparison = compare(expected, found)
    if expected.dtype.kind in "iub":
        return comparison.relative <= gate.tolerance
    return relative_error(comparison.max_abs, gate.scale) <= gate.tolerance
