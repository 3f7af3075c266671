"""A reduced precision may lose half a point of accuracy, and more only where chance explains it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokexport.exporter.config import CompileConfig
from tokexport.exporter.errors import GateError
from tokexport.exporter.parity.accuracy import (
    Accuracy,
    accuracy_warning,
    chance,
    require_accuracy,
)

FP32 = CompileConfig(target="openvino", output=Path("out"))
INT8, BF16 = (replace(FP32, precision=precision) for precision in ("int8", "bf16"))


def after(samples: int, lost: int, won: int, before: float = 0.9) -> Accuracy:
    """The accuracy where so many samples are lost and won."""
    return Accuracy(before, before - (lost - won) / samples, samples, lost, won)


@pytest.mark.parametrize(
    ("samples", "lost", "won"), [(1000, 5, 0), (1000, 40, 35), (200, 1, 0), (50, 0, 3)]
)
def test_half_a_point_may_be_lost(samples: int, lost: int, won: int) -> None:
    found = after(samples, lost, won)
    require_accuracy(found, INT8)
    assert accuracy_warning(found, INT8) == ()


@pytest.mark.parametrize(
    ("samples", "lost", "won"),
    [(1000, 12, 0), (1000, 60, 35), (200, 6, 0), (50, 5, 0), (10, 5, 0), (20000, 400, 150)],
)
def test_what_chance_does_not_explain_is_refused(samples: int, lost: int, won: int) -> None:
    with pytest.raises(GateError, match=rf"In bf16 .* \({lost} lost, {won} won\): 0.5% may be"):
        require_accuracy(after(samples, lost, won), BF16)
    require_accuracy(after(samples, lost, won), FP32)


@pytest.mark.parametrize(("samples", "lost", "won"), [(200, 4, 0), (200, 7, 3), (10, 1, 0)])
def test_what_chance_explains_is_a_warning(samples: int, lost: int, won: int) -> None:
    found = after(samples, lost, won)
    require_accuracy(found, INT8)
    (said,) = accuracy_warning(found, INT8)
    assert f"({lost} lost, {won} won): more than 0.5% is lost" in said
    assert accuracy_warning(found, FP32) == ()


def test_the_chance_is_that_of_drawn_samples() -> None:
    generator = np.random.default_rng(0)
    samples, lost, won = 400, 9, 3
    # Of 12 changed samples, half a point of 400 is 2 more lost than won: 7 to 5.
    drawn = generator.binomial(lost + won, 7 / 12, 200_000)
    assert chance(after(samples, lost, won)) == pytest.approx((drawn >= lost).mean(), abs=0.004)
    assert chance(after(400, 2, 0)) == 1.0


def test_a_right_artifact_is_seldom_refused() -> None:
    """On 200 samples of which two in a hundred change, as often to right as to wrong."""
    generator = np.random.default_rng(0)
    refused = 0
    for changed in generator.binomial(200, 0.02, 2000):
        lost = int(generator.binomial(changed, 0.5))
        found = after(200, lost, int(changed) - lost)
        try:
            require_accuracy(found, INT8)
        except GateError:
            refused += 1
    assert refused / 2000 < 0.02


def test_without_labels_nothing_is_asked() -> None:
    require_accuracy(None, INT8)
    assert accuracy_warning(None, INT8) == ()
