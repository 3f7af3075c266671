"""Counts the labelled samples that a model classifies right, and how many int8 may lose.

A reduced precision may lose half a point, beyond chance. A right artifact in 8 bits gives some
samples another class, near the borders between classes, and about as many of them become right as
become wrong. So a loss on few samples is mostly chance: of 200 samples of which 2 % change, a
quarter lose a point or more. With m samples changed from right to wrong or back, and half a point
of n lost in truth, a changed sample is a lost one with the probability p, and so many or more are
lost with the probability P::

    p = 1/2 + 0.005 n / 2m        P = Σ C(m, k) p^k (1 - p)^(m - k) over k = lost … m

This is the sign test of McNemar, "Note on the sampling error of the difference between correlated
proportions or percentages", 1947, against that loss in place of none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeGuard

from tokexport.exporter.errors import GateError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.gate_warnings import advice_for
from tokexport.exporter.parity.hits import hits
from tokexport.runtimes.arrays import Array

if TYPE_CHECKING:
    from tokexport.exporter.config import CompileConfig


#: The share of labelled samples that a reduced precision may lose.
ACCURACY_LOSS: Final = 0.005
#: A larger loss fails where it would be found by chance less often than this.
_BY_CHANCE: Final = 0.1


@dataclass(frozen=True)
class Accuracy:
    """The share of labelled samples classified right.

    Attributes:
        before: By the model as the user gave it, 0 to 1.
        after: By the artifact, or by the last stage that could run here, 0 to 1.
        samples: How many samples had labels.
        lost: How many of them only the model classifies right.
        won: How many only the artifact classifies right.
    """

    before: float
    after: float
    samples: int
    lost: int
    won: int


def accuracy_of(
    reference: Mapping[str, Array], found: Mapping[str, Array], batches: Batches
) -> Accuracy | None:
    """Returns how many labels the first output meets, before and after; None without labels.

    Args:
        reference: The outputs (batches, …) of the model in eager, by name.
        found: Those of a stage.
        batches: What both ran on.
    """
    if batches.labels is None:
        return None
    name = next(iter(reference))
    before, after = (hits(one[name], batches.labels) for one in (reference, found))
    return Accuracy(
        float(before.mean()),
        float(after.mean()),
        len(batches.labels),
        lost=int((before & ~after).sum()),
        won=int((after & ~before).sum()),
    )


def require_accuracy(accuracy: Accuracy | None, config: CompileConfig) -> None:
    """Refuses a reduced precision that costs more accuracy than chance explains."""
    if _loses(accuracy, config) and chance(accuracy) < _BY_CHANCE:
        raise GateError(
            f"{_said(accuracy, config)}: {ACCURACY_LOSS:.1%} may be lost, and chance does not "
            "explain more.",
            fix=f"No bundle was written. {advice_for(config)}",
        )


def accuracy_warning(accuracy: Accuracy | None, config: CompileConfig) -> tuple[str, ...]:
    """Returns a warning where more was lost than allowed, but chance may explain it."""
    if not _loses(accuracy, config):
        return ()
    return (
        f"{_said(accuracy, config)}: more than {ACCURACY_LOSS:.1%} is lost. On so few "
        "samples that may be chance: give more samples with labels.",
    )


def chance(accuracy: Accuracy) -> float:
    """Returns the probability that so many samples or more are lost if half a point is."""
    changed, allowed = accuracy.lost + accuracy.won, ACCURACY_LOSS * accuracy.samples
    if accuracy.lost - accuracy.won <= allowed:
        return 1.0
    p = 0.5 + allowed / (2 * changed)
    return math.fsum(
        math.exp(
            math.lgamma(changed + 1)
            - math.lgamma(k + 1)
            - math.lgamma(changed - k + 1)
            + k * math.log(p)
            + (changed - k) * math.log1p(-p)
        )
        for k in range(accuracy.lost, changed + 1)
    )


def _loses(accuracy: Accuracy | None, config: CompileConfig) -> TypeGuard[Accuracy]:
    """Returns whether a reduced precision loses more than half a point."""
    if accuracy is None or config.precision == "fp32":
        return False
    allowed = round(ACCURACY_LOSS * accuracy.samples, 6)
    return accuracy.lost - accuracy.won > allowed


def _said(accuracy: Accuracy, config: CompileConfig) -> str:
    return (
        f"In {config.precision} {accuracy.after:.2%} of {accuracy.samples} labelled samples are "
        f"right, and {accuracy.before:.2%} in fp32 ({accuracy.lost} lost, {accuracy.won} won)"
    )
