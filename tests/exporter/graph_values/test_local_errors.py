"""What rounding explains is no fault, and what is more is one."""

from __future__ import annotations

import numpy as np
import pytest

from tokexport.exporter.graph_values.local_errors import (
    DRAWS,
    compared,
    distance,
    moved_inputs,
)


def rows(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 6, 8)).astype(np.float32)


def test_equal_values_are_no_fault() -> None:
    assert not compared(rows(), rows()).is_fault


def test_rounding_is_no_fault_and_a_thousandth_is() -> None:
    assert not compared(rows(), rows() * np.float32(1 + 1e-6)).is_fault
    found = compared(rows(), rows() * np.float32(1 + 1e-3))
    assert found.is_fault
    assert "rounding explains" in found.said


def test_one_value_of_a_small_channel_is_a_fault() -> None:
    small, wrong = rows(), rows()
    small[..., 3] *= 1e-4
    wrong[..., 3] *= 1e-4
    wrong[0, 2, 3] += 1e-5
    assert compared(small, wrong).is_fault


def test_what_moves_as_far_with_its_inputs_is_no_fault() -> None:
    wrong = rows() + np.float32(1e-3)
    assert not compared(rows(), wrong, [rows(), rows() + np.float32(1e-3)]).is_fault


def test_another_shape_is_a_fault() -> None:
    found = compared(rows(), rows()[:, :5])
    assert found.is_fault
    assert found.said == "is float32 (2, 5, 8), not float32 (2, 6, 8)"


def test_values_that_are_no_numbers_have_to_be_the_same() -> None:
    one, other = rows(), rows()
    one[0, 0, 0] = np.nan
    assert not compared(one, one.copy()).is_fault
    assert compared(one, other).is_fault


@pytest.mark.parametrize(
    ("moved", "is_fault"),
    [([3, 1, 2, 0], True), ([1, 3, 2, 0], False)],
    ids=["decided", "a near-tie"],
)
def test_positions_differ_only_where_they_are_undecided(moved: list[int], is_fault: bool) -> None:
    expected, found = np.array([[3, 1, 2, 0]]), np.array([[1, 3, 2, 0]])
    assert compared(expected, found, [expected, np.array([moved])]).is_fault is is_fault


def test_a_near_tie_does_not_excuse_a_shuffled_sample() -> None:
    expected, found = np.array([[3, 1, 2, 0]]), np.array([[0, 2, 1, 3]])
    moved = [expected, np.array([[1, 3, 2, 0]])]
    difference = compared(expected, found, moved)
    assert (difference.error, difference.is_fault) == (4, True)


def test_inputs_move_by_a_few_units_and_whole_numbers_stay() -> None:
    inputs = {"x": rows(), "index": np.arange(4)}
    first, *others = moved_inputs(inputs)
    assert len(others) == DRAWS
    assert np.array_equal(first["x"], inputs["x"])
    for one in others:
        assert np.array_equal(one["index"], inputs["index"])
        off = np.abs(one["x"] / inputs["x"] - 1).max()
        assert 1e-7 < off < 1e-6


def test_the_distance_of_outputs() -> None:
    one = {"y": np.array([3.0, 4.0]), "index": np.array([1, 2, 3, 4])}
    other = {"y": np.array([3.0, 4.5]), "index": np.array([1, 2, 3, 5])}
    assert distance(one, one) == 0
    assert distance(one, other) == pytest.approx(0.1 + 0.25)
    assert distance(one, {**one, "y": np.zeros(3)}) == float("inf")
