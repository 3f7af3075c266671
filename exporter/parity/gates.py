"""Defines the gate of an output: how far it may lie from the reference, and why.

In fp32 a value may be off by 1e-5 of the scale of its own neighbourhood, or by four times what
rounding does there, whichever is more (``tokexport.runtimes.tolerances.neighbourhoods``). A half
precision has a wider floor, and four times becomes twice what rounding to that type does. int8
moves single numbers by far more than it moves the answer, so its outputs are held to figures over
all samples: their direction, by the cosine, and their error as a share of the spread, which is how
much the reference varies between samples, of the whole output and of every channel. The cosine
alone is near 1 for whatever has a large constant in it. They also judge a half precision in which
every sample crosses some near-tie, once its arithmetic is proved right. A largest entry that
changes its place passes only where the precision explains it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypedDict

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.comparison import (
    Channels,
    Comparison,
    compare,
    relative_error,
    unexplained_top1,
)
from tokexport.runtimes.tolerances.neighbourhoods import (
    RoundingError,
    Worst,
    as_samples,
    limits,
    worst,
)

if TYPE_CHECKING:
    from tokexport.exporter.config import CompileConfig

#: The share of a neighbourhood's scale allowed by default in a half precision.
REDUCED_PRECISION_TOLERANCE: Final = {"fp16": 1e-2, "bf16": 5e-2}
#: What those precisions are called among types.
HALF_TYPES: Final = {"fp16": "float16", "bf16": "bfloat16"}
#: The smallest cosine allowed by default over all samples: in int8.
LEAST_COSINE: Final = 0.99
#: The largest error allowed by default over all samples, as a share of the spread. One answer for
#: all inputs is off by 1 or more. ViTs come to 0.01 … 0.08 in int8 on images, and to 0.15 on noise,
#: which varies less.
SPREAD_TOLERANCE: Final = 0.5
#: The smallest fp32 tolerance; below it lies the effect of a different order of summation.
FP32_FLOOR: Final = 1e-5
#: A neighbourhood that rounding moves by more proves little about the compile.
UNSTABLE: Final = 1e-3
#: The tolerance in a half type as a multiple of the rounding error: the measurement rounds every
#: result, and an artifact fewer.
HALF_FACTOR: Final = 2.0

_KEPT_OUT: Final[Mapping[str, Any]] = {"report": False}


class BundledGate(TypedDict, total=False):
    """The gate of an output, as a bundle keeps it: only the numbers that it asks for.

    Attributes:
        local_tolerance: The share of a neighbourhood's scale that every value may always be off.
        relative_tolerance: The largest difference that is allowed, as a share of ``scale``.
        scale: The largest absolute value of the reference output.
        top1_tolerance: The share of the scale that two entries may be apart which change places.
        least_cosine: The smallest cosine allowed.
        spread: How much the reference varies, the root of a mean square.
        spread_tolerance: The largest root of the mean squared difference, as a share of ``spread``.
    """

    local_tolerance: float
    relative_tolerance: float
    scale: float
    top1_tolerance: float
    least_cosine: float
    spread: float
    spread_tolerance: float


@dataclass(frozen=True)
class Verdict:
    """The result of judging an output at a gate.

    Attributes:
        comparison: Its distance from the reference.
        worst: The value that uses most of what it is allowed; None where no value is held by
            itself.
        failure: Why it does not pass, a clause; '' where it does.
    """

    comparison: Comparison
    worst: Worst | None = None
    failure: str = ""


@dataclass(frozen=True)
class Gate:
    """How far an output may lie from the reference, and why.

    Attributes:
        tolerance: The share of a neighbourhood's scale that is always allowed; where nothing is
            said of neighbourhoods, the largest difference as a share of ``scale``; infinite where
            the cosine and the spread decide.
        eager_error: The largest difference of the fp32 eager model from itself in float64, as a
            share of ``scale``; None where the model has no float64 run.
        scale: The largest absolute value of the reference output.
        reason: One clause that says which rule gave the tolerance.
        least_cosine: The smallest cosine allowed; None without a limit.
        advice: What to do where a stage fails the gate; '' for no advice.
        spread: How much the reference varies between samples, the root of a mean square; between
            its own values where it is the same for all samples. None where the gate does not ask.
        varies: Whether the spread is one between samples.
        spread_tolerance: The largest root of the mean squared difference allowed, as a share of
            ``spread``.
        moves: What share of its scale rounding moves an ordinary neighbourhood by.
        unmeetable: Whether rounding alone exceeds what the user allows.
        unstable: Which neighbourhoods rounding moves far, a clause; '' where it moves none.
        allowed: How far every value may be off, (batches, …); None where one number holds for all.
        explained: How near two entries must be to change places, (batches, …); None where
            ``allowed`` says so.
        top1_tolerance: The share of a scale that two entries may always be apart which change
            places; None where ``explained`` is.
        rounding_error: The rounding error, by neighbourhood; None where the gate does not use it.
        computed_in: The precision with which fills are compared.
        scale_of_numbers: The scale of each sample of an output of one number each; else None.
        columns: How far every value of an output of one row a sample may be off for its column,
            (samples, values); else None.
        channels: How far each channel may be off over all samples; None where no gate asks.
        hidden: Which channels int8 moves by more than they vary, a clause; '' for none.
        samples: How many samples a batch has.
    """

    tolerance: float
    eager_error: float | None
    scale: float
    reason: str
    least_cosine: float | None = None
    advice: str = ""
    spread: float | None = None
    varies: bool = True
    spread_tolerance: float = SPREAD_TOLERANCE
    moves: float = 0.0
    unmeetable: bool = False
    unstable: str = ""
    allowed: Array | None = field(default=None, repr=False, compare=False, metadata=_KEPT_OUT)
    explained: Array | None = field(default=None, repr=False, compare=False, metadata=_KEPT_OUT)
    top1_tolerance: float | None = None
    rounding_error: RoundingError | None = field(
        default=None, repr=False, compare=False, metadata=_KEPT_OUT
    )
    computed_in: str = field(default="float32", metadata=_KEPT_OUT)
    scale_of_numbers: Array | None = field(
        default=None, repr=False, compare=False, metadata=_KEPT_OUT
    )
    columns: Array | None = field(default=None, repr=False, compare=False, metadata=_KEPT_OUT)
    channels: Channels | None = field(default=None, repr=False, compare=False, metadata=_KEPT_OUT)
    hidden: str = field(default="", metadata=_KEPT_OUT)
    samples: int = field(default=1, metadata=_KEPT_OUT)

    @property
    def holds_over_all(self) -> bool:
        """Whether it judges all samples together, so that single ones may lie outside."""
        return self.least_cosine is not None

    @property
    def score_tolerance(self) -> float:
        """The tolerance of scores, as a share of their scale."""
        if self.explained is not None:  # of an absolute tolerance, which is about outputs
            return FP32_FLOOR
        return self.tolerance if math.isfinite(self.tolerance) else 0.0

    def judge(self, expected: Array, found: Array, at: Any = slice(None)) -> Verdict:
        """Judges an output at the gate.

        Args:
            expected: The reference, (batches, …), or a part of it.
            found: What is judged, of that shape.
            at: The place of that part among all batches.
        """
        comparison = compare(expected, found)
        if expected.dtype.kind in "iub":
            share = comparison.relative
            failure = f"differs in {share:.2%} of its values" if not share <= self.tolerance else ""
            return Verdict(comparison, None, failure)
        if self.holds_over_all:
            if isinstance(at, int):  # one batch
                expected, found = expected[None], found[None]
            return Verdict(comparison, None, self._over_all(expected, found, comparison))
        if self.allowed is None:
            allowed = np.full(expected.shape, self.tolerance * (self.scale or 1.0))
        else:
            allowed = self.allowed[at]
        most = worst(expected, found, allowed)
        if most is not None and not most.share <= 1:
            place = ", ".join(map(str, most.index))
            failure = f"is off by {most.error:.2e} at [{place}], and {most.allowed:.2e} is allowed"
            return Verdict(comparison, most, f"{failure} there")
        if self.explained is None:
            return Verdict(comparison, most)
        return Verdict(comparison, most, unexplained_top1(expected, found, self.explained[at]))

    def _over_all(self, expected: Array, found: Array, comparison: Comparison) -> str:
        """Returns why an output fails a gate over all samples; '' if it passes."""
        if self.least_cosine is not None and not comparison.cosine >= self.least_cosine:
            return (
                f"has a cosine of {comparison.cosine:.4f} to eager's, and {self.least_cosine:g} "
                "is the least"
            )
        error = self.spread_error(comparison)
        if error is None or self.spread is None:
            return ""
        between = "samples" if self.varies else "its values"
        if not error <= self.spread_tolerance:
            return (
                f"is off by {error:.2f} of its spread between {between}, and "
                f"{self.spread_tolerance:g} is allowed"
            )
        if self.channels is None:
            return ""
        one, other = as_samples(expected, self.samples), as_samples(found, self.samples)
        return self.channels.failure(one, other)

    def spread_error(self, comparison: Comparison) -> float | None:
        """Returns the error of an output as a share of the spread; None without a spread."""
        return None if self.spread is None else relative_error(comparison.rms, self.spread)

    @property
    def text(self) -> str:
        """The tolerance as a table shows it."""
        if self.least_cosine is not None:
            cosine = f"cosine {self.least_cosine:g}"
            return cosine if self.spread is None else f"{cosine}, spread {self.spread_tolerance:g}"
        return f"{self.tolerance:.1e}"

    def for_manifest(self) -> dict[str, float]:
        """The fields of the gate in the manifest."""
        if self.least_cosine is not None:
            found = {"least_cosine": self.least_cosine, "scale": self.scale}
            if self.spread is not None:
                found |= {"spread_tolerance": self.spread_tolerance, "spread": self.spread}
            return found
        if self.top1_tolerance is not None:
            top1 = {"top1_tolerance": self.top1_tolerance}
            return {"relative_tolerance": self.tolerance, "scale": self.scale} | top1
        key = "relative_tolerance" if self.rounding_error is None else "local_tolerance"
        return {key: self.tolerance, "scale": self.scale}

    def about(self, expected: Array, rows: list[int]) -> Gate:
        """Returns the gate of some batches for another reference.

        Args:
            expected: What those batches are compared with, (rows, …).
            rows: The batches.
        """
        if self.rounding_error is None:
            return self
        of = np.concatenate([np.arange(self.samples) + row * self.samples for row in rows])
        numbers = self.scale_of_numbers, self.columns
        known = [None if each is None else each[of] for each in numbers]
        floor = self.tolerance if self.top1_tolerance is None else self.top1_tolerance
        rounding_error, samples = self.rounding_error.of(of), self.samples
        found = limits(expected, rounding_error, floor, self.computed_in, samples, *known)
        if self.top1_tolerance is not None:
            return replace(self, explained=found)
        return replace(self, allowed=found)


def narrowed_stages(config: CompileConfig) -> tuple[str, ...]:
    """Returns the stages that compute in the precision asked for; those before them are in fp32."""
    if config.precision == "fp32":
        return ()
    if config.backend.narrows_lowered:
        return "lowered", "artifact"
    return "without kernels", "artifact"
