"""The figures of a comparison are what their definitions say, on numbers of any size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokexport.exporter.comparison.figures import figures
from tokexport.runtimes.tolerances.neighbourhoods import local_floor, worst


def test_they_are_as_defined() -> None:
    found = figures(np.array([[3.0, 4.0]]), np.array([[3.0, 5.0]]))
    assert not found.identical
    assert (found.comparison.max_abs, found.comparison.mean_abs) == (1.0, 0.5)
    assert found.percentiles == {"50": 0.0, "90": 1.0, "99": 1.0, "99.9": 1.0}
    assert found.sqnr_db == pytest.approx(10 * math.log10(25))


@given(
    seed=st.integers(0, 999),
    exponent=st.sampled_from([-60, -30, 0, 30, 60]),
    error=st.sampled_from([1e-7, 1e-3, 0.5]),
)
def test_the_tolerance_is_the_smallest_that_passes(seed: int, exponent: int, error: float) -> None:
    draw = np.random.default_rng(seed)
    reference = draw.standard_normal((3, 5, 8)) * 2.0**exponent
    candidate = reference * (1 + error * draw.standard_normal(reference.shape))
    found = figures(reference, candidate)

    def passes(tolerance: float) -> bool:
        most = worst(reference, candidate, local_floor(reference, tolerance))
        return most is not None and most.share <= 1

    assert passes(found.tolerance * (1 + 1e-9))
    assert not passes(found.tolerance * (1 - 1e-6))
    noise = np.square((candidate - reference) / 2.0**exponent).sum()
    power = np.square(reference / 2.0**exponent).sum()
    assert found.sqnr_db == pytest.approx(10 * math.log10(power / noise))


def test_equal_outputs_are_identical() -> None:
    same = np.array([[1.0, -np.inf, 0.0]])
    found = figures(same, same.copy())
    assert found.identical
    assert (found.sqnr_db, found.tolerance, found.comparison.max_abs) == (math.inf, 0.0, 0.0)


@pytest.mark.parametrize("other", [np.nan, np.inf])
def test_no_tolerance_passes_what_is_no_number(other: float) -> None:
    found = figures(np.array([[1.0, 2.0]]), np.array([[1.0, other]]))
    assert (found.sqnr_db, found.tolerance) == (None, math.inf)


def test_a_zero_that_is_none_has_an_infinite_noise() -> None:
    found = figures(np.zeros((2, 3)), np.full((2, 3), 1e-3))
    assert found.sqnr_db == -math.inf
    assert found.tolerance > 1e30


def test_a_fill_is_no_signal() -> None:
    filled = np.array([[1.0, -1e9, 2.0, -1e9]])
    near = filled + [0.1, 0.0, 0.1, 0.0]
    found = figures(filled, near)
    assert found.sqnr_db == pytest.approx(10 * math.log10(5 / 0.02))


def test_of_whole_numbers_a_share_differs() -> None:
    found = figures(np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 9]]))
    assert (found.identical, found.sqnr_db, found.tolerance) == (False, None, 0.25)
    assert found.comparison.max_abs == 5.0


def test_half_types_are_compared_as_they_are() -> None:
    reference = np.array([[60000.0, 1.0]], np.float16)
    found = figures(reference, np.array([[-60000.0, 1.0]], np.float16))
    assert found.comparison.max_abs == 120000.0
    assert math.isfinite(found.sqnr_db or 0.0)
