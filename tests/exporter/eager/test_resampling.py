"""Whole-number coefficients give the bytes of Pillow, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from tokexport.exporter.eager.resampling import FINE, POINT, Coefficients, coefficients
from tokexport.runtimes.pictures.steps_reader import INTERPOLATIONS

PIXELS = np.random.default_rng(0).integers(0, 256, (1200, 3), dtype=np.uint8)


def resized(row: np.ndarray, one: Coefficients) -> np.ndarray:
    """Resizes a row (in, 3) of bytes in float32, in the order in which numpy adds."""
    coarse, fine = (part @ row.astype(np.float32) for part in (one.coarse, one.fine))
    whole = np.floor(coarse * np.float32(2.0 ** (FINE - POINT)))
    rest = (coarse - whole * np.float32(2.0 ** (POINT - FINE))) * np.float32(2**FINE)
    units = np.floor((rest + fine + np.float32(2 ** (POINT - 1))) * np.float32(2.0**-POINT))
    found: np.ndarray = np.clip(whole + units, 0, 255).astype(np.uint8)
    return found


def by_pillow(row: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    kind = getattr(Image.Resampling, interpolation.upper())
    return np.asarray(Image.fromarray(row[None]).resize((size, 1), kind))[0]


@given(
    size=st.integers(1, 1200),
    new=st.integers(1, 300),
    interpolation=st.sampled_from(INTERPOLATIONS),
    black_and_white=st.booleans(),
)
def test_an_axis_is_resized_as_by_pillow(
    size: int, new: int, interpolation: str, black_and_white: bool
) -> None:
    row = np.ascontiguousarray(PIXELS[:size])
    row = np.where(row < 128, 0, 255).astype(np.uint8) if black_and_white else row
    one = coefficients(size, new, interpolation)
    assert one.exact or size > 200 * new
    assume(one.exact)
    np.testing.assert_array_equal(resized(row, one), by_pillow(row, new, interpolation))


def test_no_coefficient_is_off_by_a_unit() -> None:
    rows = np.random.default_rng(0).integers(0, 2, (509, 20_000), dtype=np.uint8) * 255
    one = coefficients(509, 34, "hamming")
    units = one.coarse.astype(np.float64) * (1 << FINE) + one.fine
    sums = units @ rows.astype(np.float64) + (1 << (POINT - 1))  # whole numbers, exact in float64
    wanted = np.asarray(Image.fromarray(rows).resize((20_000, 34), Image.Resampling.HAMMING))
    np.testing.assert_array_equal(np.clip(np.floor(sums / (1 << POINT)), 0, 255), wanted)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_coefficients_are_whole_and_add_up(interpolation: str) -> None:
    one = coefficients(640, 224, interpolation)
    for part in (one.coarse, one.fine):
        assert (part == np.round(part)).all()
    assert np.abs(one.fine).max() <= 1 << (FINE - 1)
    sums = (one.coarse.astype(np.float64) * (1 << FINE) + one.fine).sum(-1)
    assert np.abs(sums / (1 << POINT) - 1).max() < 1e-5


def test_sums_beyond_float32_are_noticed() -> None:
    assert coefficients(8000, 224, "bicubic").exact
    assert not coefficients(8000, 2, "bicubic").exact
