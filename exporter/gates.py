"""The gate of every output: how far it may lie from the reference, and why that far.

In fp32 an error may be as large as the model's own distance from float64, four times over. A half
precision has a tolerance of its own. int8 moves single numbers by far more than it moves the
answer, so its outputs are held to a direction: the cosine over all samples. Where there are labels,
a reduced precision may cost half a point of accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tokexport.exporter.errors import GateError
from tokexport.exporter.token_cap_use import TokenCapUse
from tokexport.runtimes.base import Array
from tokexport.runtimes.comparison import Comparison, compare

if TYPE_CHECKING:
    from tokexport.exporter.config import CompileConfig
    from tokexport.exporter.float64_error import Float64Error
    from tokexport.exporter.report import Accuracy

#: The largest relative difference allowed by default in a half precision.
REDUCED_PRECISION_TOLERANCE: Final = {"fp16": 1e-2, "bf16": 5e-2}
#: The smallest cosine allowed by default in int8.
LEAST_COSINE: Final = 0.99
#: The share of labelled samples that a reduced precision may lose.
ACCURACY_LOSS: Final = 0.005
#: The smallest fp32 tolerance; below it lies the noise of a different order of summation.
FP32_FLOOR: Final = 1e-5
#: A gate wider than this says more about the model than about the compile.
UNSTABLE: Final = 1e-3
#: How many times its own fp32 error a model may be off after compiling.
EAGER_ERROR_FACTOR: Final = 4.0


@dataclass(frozen=True)
class Gate:
    """How far an output may lie from the reference, and why that far.

    Attributes:
        tolerance: The largest difference allowed, as a share of ``scale``; infinite where the
            cosine alone decides.
        eager_error: The difference of the fp32 eager model from itself in float64, as a share of
            ``scale``; None where the model has no float64 run.
        scale: The largest absolute value of the reference output.
        reason: One clause that says which rule gave the tolerance.
        from_eager: Whether that rule is the model's own distance from float64.
        least_cosine: The smallest cosine allowed; None where none is asked for.
        advice: What to do where a step leaves the gate; '' where nothing in particular.
    """

    tolerance: float
    eager_error: float | None
    scale: float
    reason: str
    from_eager: bool = False
    least_cosine: float | None = None
    advice: str = ""

    def lets(self, comparison: Comparison) -> bool:
        """Tells whether an output that compares so passes."""
        near = comparison.relative <= self.tolerance
        return near and (self.least_cosine is None or comparison.cosine >= self.least_cosine)

    @property
    def text(self) -> str:
        """What is allowed, as a table shows it."""
        if self.least_cosine is not None:
            return f"cosine {self.least_cosine:g}"
        return f"{self.tolerance:.1e}"

    def for_manifest(self) -> dict[str, float]:
        """What the manifest says of it."""
        if self.least_cosine is not None:
            return {"least_cosine": self.least_cosine, "scale": self.scale}
        return {"relative_tolerance": self.tolerance, "scale": self.scale}


def set_gates(
    outputs: Mapping[str, Array], eager: Float64Error, precision: str, atol: float | None
) -> dict[str, Gate]:
    """Returns the gate of every output: max(1e-5, 4 × the fp32 error of eager itself) in fp32.

    Args:
        outputs: What the model answered, (batches, …) by name.
        eager: How far that is from float64.
        precision: The precision that is judged.
        atol: An absolute tolerance that the person asked for; it replaces the default of floating
            outputs. Whole numbers and booleans must be equal.
    """
    advice = _ADVICE.get(precision, "")
    gates = {}
    for name, expected in outputs.items():
        error = None if eager.by_output is None else eager.by_output[name]
        scale = compare(expected, expected).scale
        own = max(FP32_FLOOR, EAGER_ERROR_FACTOR * (error or 0.0))
        least_cosine = None
        if expected.dtype.kind in "iub":
            tolerance, reason = 0.0, "whole numbers are equal or they are not"
        elif atol is not None:
            tolerance, reason = atol / (scale or 1.0), f"--atol {atol:g}"
        elif precision == "int8":
            tolerance, least_cosine = math.inf, LEAST_COSINE
            reason = "the default of int8, over all samples"
        elif precision != "fp32":
            tolerance = max(REDUCED_PRECISION_TOLERANCE[precision], own)
            reason = f"the default of {precision}"
        elif error is None:
            tolerance = FP32_FLOOR
            reason = f"the fp32 default; no float64 run, {eager.why_not}"
        else:
            tolerance = own
            reason = f"max(1e-5, 4 × {error:.1e}, the distance of fp32 eager from float64)"
        from_eager = error is not None and tolerance == EAGER_ERROR_FACTOR * error
        gates[name] = Gate(tolerance, error, scale, reason, from_eager, least_cosine, advice)
    return gates


_OTHER: Final = "or compile with --precision fp32."
_ADVICE: Final = {
    "int8": "Give --inputs that are like real ones, and more of them; for ort try the other "
    f"--quantization; {_OTHER}",
    "bf16": f"Give --inputs that are like real ones; {_OTHER}",
    "fp16": "Where the processor has no fp16, OpenVINO computes in bf16: try --precision bf16, "
    "whose gate is wider; or compile with --precision fp32.",
}


def narrowed_hops(config: CompileConfig) -> tuple[str, ...]:
    """Returns the steps that compute in the precision asked for; those before them are in fp32."""
    if config.precision == "fp32":
        return ()
    return ("lowered", "artifact") if config.target == "trt" else ("artifact",)


def require_accuracy(accuracy: Accuracy | None, precision: str) -> None:
    """Raises GateError where a reduced precision costs more than half a point of accuracy."""
    if accuracy is None or precision == "fp32":
        return
    lost = round((accuracy.before - accuracy.after) * accuracy.samples)
    if lost > round(ACCURACY_LOSS * accuracy.samples, 6):
        raise GateError(
            f"In {precision} {accuracy.after:.2%} of {accuracy.samples} labelled samples are "
            f"right, and {accuracy.before:.2%} in fp32: {ACCURACY_LOSS:.1%} may be lost.",
            fix=f"No bundle was written. {_ADVICE[precision]}",
        )


def gate_warnings(gates: Mapping[str, Gate], cap: TokenCapUse | None) -> tuple[str, ...]:
    """Says what makes the proof weaker than it looks."""
    found = [*cap.warnings()] if cap is not None else []
    for name, gate in gates.items():
        if gate.scale == 0:
            found.append(
                f"Output '{name}' holds no finite number but zero on these inputs, so its parity "
                "proves nothing: give trained weights, or real inputs."
            )
        elif gate.from_eager and gate.tolerance > UNSTABLE:
            found.append(
                f"Output '{name}' of the model itself moves by {gate.eager_error:.1e} of its scale "
                "between fp32 and float64, so its gate is wide."
            )
    return tuple(found)
