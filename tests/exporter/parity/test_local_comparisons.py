"""Comparisons beside the proof itself: nothing loud hides a wrong value beside it."""

from __future__ import annotations

import numpy as np
import pytest

from tokexport.exporter.bench.subject import widest_gate
from tokexport.exporter.edges.whole_number_ranges import near
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.default_gates import set_gates
from tokexport.exporter.parity.gates import Gate
from tokexport.exporter.rounding.local_rounding import local_rounding
from tokexport.exporter.rounding.measure import Rounding
from tokexport.exporter.tuning.trials import _agrees
from tokexport.runtimes.arrays import Array

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


def gate_of(values: Array, kinds: tuple[str, ...] = ()) -> Gate:
    """The gate of an output (batches, samples, …) that rounding moves by a millionth."""
    size, samples = values.shape[:2]
    batches = Batches(("x",), {"x": np.zeros((size, samples))}, size, None, "", kinds)
    moved = {"y": np.abs(values.astype(np.float64)) * 1e-6}
    rounding = Rounding(tuple(range(size)), moved, {}, moved, {}, {})
    whole = local_rounding({"y": values}, rounding, batches, samples)
    return set_gates({"y": values}, whole, "fp32", None, batch=samples)["y"]


@pytest.mark.parametrize("inner", [(), (1,), (10,), (9, 8), (4, 5, 5)])
def test_a_part_of_the_batches_is_allowed_what_all_are(inner: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal((6, 4, *inner)).astype(np.float32)
    values[4:] *= 1e4
    gate = gate_of(values, ("samples",) * 4 + ("example",) * 2)
    rows = [1, 4, 5]
    assert gate.allowed is not None
    assert gate.allowed[:4].max() < 1e-3
    about = gate.about(values[rows], rows)
    np.testing.assert_array_equal(about.allowed, gate.allowed[rows])


def test_a_reference_that_was_told_decisions_is_allowed_what_is_near_its_own_values() -> None:
    values = np.random.default_rng(0).standard_normal((2, 1, 9, 8)).astype(np.float32)
    changed = values.copy()
    changed[:, :, [2, 5]] = values[:, :, [5, 2]] * [[1e-4], [1.0]]
    wrong = changed.copy()
    wrong[1, 0, 2] *= 1.1
    gate = gate_of(values)
    about = gate.about(changed, [0, 1])
    assert not about.judge(changed, changed * np.float32(1 + 1e-6)).failure
    assert "is off by" in about.judge(changed, wrong).failure
    assert about.allowed is not None
    assert about.allowed[1, 0, 2].max() < gate.allowed[1, 0, 2].max()  # type: ignore[index]


def test_neighbourhoods_of_zeros_where_rounding_was_measured_are_allowed_some_elsewhere() -> None:
    values = np.random.default_rng(0).standard_normal((6, 1, 20, 8)).astype(np.float32)
    values[:4, :, :, 3] = 0
    size, rows = 6, (0, 1, 2, 3)
    batches = Batches(("x",), {"x": np.zeros((size, 1))}, size, None, "")
    moved = {"y": np.where(values[:4] == 0, 0.0, 1e-4)}
    whole = local_rounding({"y": values}, Rounding(rows, moved, {}, moved, {}, {}), batches, 1)
    gate = set_gates({"y": values}, whole, "fp32", None)["y"]
    off = values + np.float32(1e-4)
    assert not gate.judge(values[4:], off[4:], slice(4, 6)).failure
    off[5, 0, 7, 3] += np.float32(0.05)
    assert "[1, 0, 7, 3]" in gate.judge(values[4:], off[4:], slice(4, 6)).failure
