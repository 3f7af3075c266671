"""Comparisons beside the proof itself: nothing loud hides a wrong value beside it."""

from __future__ import annotations

import numpy as np
import pytest

from tokexport.exporter.bench.subject import widest_gate
from tokexport.exporter.tuning_trials import _agrees
from tokexport.exporter.whole_number_ranges import near
from tokexport.runtimes.base import Array

LOUD = ("a fill", "a loud channel")


def beside(loud: str) -> tuple[Array, Array, Array]:
    """Tokens (2, 9, 8) with a loud channel, the same rounded, and the same off in a quiet one."""
    right = np.random.default_rng(0).standard_normal((2, 9, 8)).astype(np.float32)
    right[:, :, 3] *= 1e8
    if loud == "a fill":
        right[:, :, 3] = np.finfo(np.float32).min
    close, wrong = right.copy(), right.copy()
    close[:, :, :3] *= 1 + 1e-6
    wrong[1, :, 5] *= 1.1
    return right, close, wrong


@pytest.mark.parametrize("name", LOUD)
def test_a_tenth_off_in_a_quiet_channel_is_seen(name: str) -> None:
    right, close, wrong = beside(name)
    assert _agrees({"y": close}, {"y": right}, 1e-4)
    assert not _agrees({"y": wrong}, {"y": right}, 1e-4)
    assert near(right[None], close[None], "fp32")
    assert not near(right[None], wrong[None], "fp32")
    gate = widest_gate(right[None], 2, "it cannot be traced")
    assert not gate.judge(right[None], close[None]).failure
    assert "is off by" in gate.judge(right[None], wrong[None]).failure


def test_whole_numbers_are_equal_or_not() -> None:
    numbers = np.array([[1, 2, 1 << 40]])
    assert near(numbers, numbers.copy(), "fp32")
    assert not near(numbers, numbers + np.array([0, 0, 1]), "fp32")
