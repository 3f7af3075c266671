"""The gate of every output: how far it may lie from the reference, and why that far.

In fp32 an error may be as large as the model's own distance from float64, four times over. A half
precision has a tolerance of its own. int8 moves single numbers by far more than it moves the
answer, so its outputs are held to two figures over all samples: their direction, by the cosine, and
their error as a share of the spread, which is how much the reference varies between samples. The
cosine alone is near 1 for whatever has a large constant in it. A half precision in which every
sample decides some near-tie the other way is held to them too, once its arithmetic is proved right.
Where there are labels, a reduced precision may cost half a point of accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from tokexport.exporter.errors import GateError
from tokexport.exporter.gate_advice import advice_for
from tokexport.exporter.token_cap_use import TokenCapUse
from tokexport.runtimes.base import Array
from tokexport.runtimes.comparison import Comparison, compare, relative_error, spread

if TYPE_CHECKING:
    from tokexport.exporter.config import CompileConfig
    from tokexport.exporter.float64_error import Float64Error
    from tokexport.exporter.report import Accuracy

#: The largest relative difference allowed by default in a half precision.
REDUCED_PRECISION_TOLERANCE: Final = {"fp16": 1e-2, "bf16": 5e-2}
#: The smallest cosine allowed by default over all samples: in int8.
LEAST_COSINE: Final = 0.99
#: The largest error allowed by default over all samples, as a share of the spread. One answer for
#: all inputs is off by 1 or more. ViTs come to 0.01 … 0.08 in int8 on images, and to 0.15 on noise,
#: which varies less.
SPREAD_TOLERANCE: Final = 0.5
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
            cosine and the spread decide.
        eager_error: The difference of the fp32 eager model from itself in float64, as a share of
            ``scale``; None where the model has no float64 run.
        scale: The largest absolute value of the reference output.
        reason: One clause that says which rule gave the tolerance.
        from_eager: Whether that rule is the model's own distance from float64.
        least_cosine: The smallest cosine allowed; None where none is asked for.
        advice: What to do where a step leaves the gate; '' where nothing in particular.
        spread: How much the reference varies between samples, the root of a mean square; between
            its own values where samples tell nothing. None where the gate does not ask.
        varies: Whether the spread is one between samples.
        spread_tolerance: The largest root of the mean squared difference allowed, as a share of
            ``spread``.
    """

    tolerance: float
    eager_error: float | None
    scale: float
    reason: str
    from_eager: bool = False
    least_cosine: float | None = None
    advice: str = ""
    spread: float | None = None
    varies: bool = True
    spread_tolerance: float = SPREAD_TOLERANCE

    @property
    def holds_over_all(self) -> bool:
        """Whether it is one of all samples together, which a few of them may lie outside of."""
        return self.least_cosine is not None

    def lets(self, comparison: Comparison) -> bool:
        """Tells whether an output that compares so passes."""
        near = comparison.relative <= self.tolerance
        alike = self.least_cosine is None or comparison.cosine >= self.least_cosine
        error = self.spread_error(comparison)
        return near and alike and (error is None or error <= self.spread_tolerance)

    def spread_error(self, comparison: Comparison) -> float | None:
        """Returns the error of an output as a share of the spread; None where none is asked for."""
        return None if self.spread is None else relative_error(comparison.rms, self.spread)

    @property
    def text(self) -> str:
        """What is allowed, as a table shows it."""
        if self.least_cosine is not None:
            cosine = f"cosine {self.least_cosine:g}"
            return cosine if self.spread is None else f"{cosine}, spread {self.spread_tolerance:g}"
        return f"{self.tolerance:.1e}"

    def for_manifest(self) -> dict[str, float]:
        """What the manifest says of it."""
        if self.least_cosine is not None:
            found = {"least_cosine": self.least_cosine, "scale": self.scale}
            if self.spread is not None:
                found |= {"spread_tolerance": self.spread_tolerance, "spread": self.spread}
            return found
        return {"relative_tolerance": self.tolerance, "scale": self.scale}


def set_gates(
    outputs: Mapping[str, Array],
    eager: Float64Error,
    precision: str,
    atol: float | None,
    *,
    batch: int = 1,
    advice: str = "",
) -> dict[str, Gate]:
    """Returns the gate of every output: max(1e-5, 4 × the fp32 error of eager itself) in fp32.

    Args:
        outputs: What the model answered, (batches, …) by name.
        eager: How far that is from float64.
        precision: The precision that is judged.
        atol: An absolute tolerance that the person asked for; it replaces the default of floating
            outputs. Whole numbers and booleans must be equal.
        batch: How many samples a batch has: the leading axis of outputs that have one of that size.
        advice: What to do where a step leaves the gate.
    """
    gates = {}
    for name, expected in outputs.items():
        error = None if eager.by_output is None else eager.by_output[name]
        scale = compare(expected, expected).scale
        own = max(FP32_FLOOR, EAGER_ERROR_FACTOR * (error or 0.0))
        from_float64 = f"4 × {error or 0.0:.1e}, the distance of fp32 eager from float64"
        if expected.dtype.kind in "iub":
            gate = Gate(0.0, error, scale, "whole numbers are equal or they are not")
        elif atol is not None:
            gate = Gate(atol / (scale or 1.0), error, scale, f"--atol {atol:g}")
        elif precision == "int8":
            gate = _over_all_samples(expected, error, scale, own * scale, batch)
        elif precision != "fp32":
            default = REDUCED_PRECISION_TOLERANCE[precision]
            reason = f"the default of {precision}, {default:g} of the largest value"
            reason = reason if own <= default else f"max({default:g}, {from_float64})"
            gate = Gate(max(default, own), error, scale, reason)
        elif error is None:
            reason = f"the fp32 default; no float64 run, {eager.why_not}"
            gate = Gate(FP32_FLOOR, error, scale, reason)
        else:
            gate = Gate(own, error, scale, f"max(1e-5, {from_float64})")
        from_eager = error is not None and gate.tolerance == EAGER_ERROR_FACTOR * error
        gates[name] = replace(gate, from_eager=from_eager, advice=advice)
    return gates


def over_all_gates(
    gates: Mapping[str, Gate], outputs: Mapping[str, Array], batch: int
) -> dict[str, Gate]:
    """Returns gates over all samples together in place of gates of each; those of integers stay.

    Args:
        gates: The gate of every output.
        outputs: What the model answered, (batches, …) by name.
        batch: How many samples a batch has.
    """
    found = {}
    for name, gate in gates.items():
        if outputs[name].dtype.kind not in "iub":
            noise = gate.scale * max(FP32_FLOOR, EAGER_ERROR_FACTOR * (gate.eager_error or 0.0))
            over_all = _over_all_samples(outputs[name], gate.eager_error, gate.scale, noise, batch)
            reason = f"every sample holds a near-tie that fell the other way; {over_all.reason}"
            gate = replace(over_all, reason=reason, advice=gate.advice)
        found[name] = gate
    return found


def _over_all_samples(
    expected: Array, error: float | None, scale: float, noise: float, batch: int
) -> Gate:
    """Returns the gate over all samples together for an output (batches, …).

    Where the samples do not differ by more than rounding, or there is but one, the spread is that
    between the output's own values; where those do not differ either, it is their size.
    """
    per_sample = expected.ndim > 1 and expected.shape[1] == batch
    finite = expected[np.isfinite(expected)]
    between = spread(expected, 2 if per_sample else 1), spread(finite, 1)
    size = compare(finite, np.zeros_like(finite)).rms
    found = next((each for each in between if each > noise), size)
    return Gate(
        math.inf,
        error,
        scale,
        f"the default over all samples: a cosine of {LEAST_COSINE:g} or more, and an "
        f"error of {SPREAD_TOLERANCE:g} of the spread between samples or less",
        least_cosine=LEAST_COSINE,
        spread=found,
        varies=between[0] > noise,
        spread_tolerance=SPREAD_TOLERANCE,
    )


def narrowed_hops(config: CompileConfig) -> tuple[str, ...]:
    """Returns the steps that compute in the precision asked for; those before them are in fp32."""
    if config.precision == "fp32":
        return ()
    if config.target == "trt":
        return "lowered", "artifact"
    return "without kernels", "artifact"


def require_accuracy(accuracy: Accuracy | None, config: CompileConfig) -> None:
    """Raises GateError where a reduced precision costs more than half a point of accuracy."""
    if accuracy is None or config.precision == "fp32":
        return
    lost = round((accuracy.before - accuracy.after) * accuracy.samples)
    if lost > round(ACCURACY_LOSS * accuracy.samples, 6):
        raise GateError(
            f"In {config.precision} {accuracy.after:.2%} of {accuracy.samples} labelled samples "
            f"are right, and {accuracy.before:.2%} in fp32: {ACCURACY_LOSS:.1%} may be lost.",
            fix=f"No bundle was written. {advice_for(config)}",
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


def spread_warnings(gates: Mapping[str, Gate]) -> tuple[str, ...]:
    """Says of which outputs no sample shows that an artifact reads its inputs."""
    return tuple(
        f"Output '{name}' is the same for all samples, so nothing shows that int8 reads its "
        "inputs: give several different samples with --inputs."
        for name, gate in gates.items()
        if not gate.varies
    )
