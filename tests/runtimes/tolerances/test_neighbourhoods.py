"""A value is held to the scale of its own neighbourhood, whatever else the output holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.runtimes.tolerances.neighbourhoods import (
    Neighbourhoods,
    RoundingError,
    as_samples,
    differences,
    epsilon,
    limits,
    worst,
)
from tokexport.runtimes.tolerances.scales import fills

FLOOR = 1e-5
LOWEST = float(np.finfo(np.float32).min)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def share(
    reference: np.ndarray, candidate: np.ndarray, rounding_error: RoundingError | None = None
) -> float:
    """Returns how much of what it is allowed the worst value uses, where rounding explains none."""
    around = Neighbourhoods(reference)
    none = rounding_error or around.rounding_error(np.zeros(reference.shape))
    found = worst(reference, candidate, around.allowed(none, FLOOR))
    assert found is not None
    return found.share


def rounded(reference: np.ndarray, seed: int = 1) -> np.ndarray:
    """Returns the values off by a share of themselves that any two right programs are off by."""
    off = np.random.default_rng(seed).uniform(-1, 1, reference.shape) * 1e-6
    return (reference * (1 + off)).astype(np.float32)


def with_padding_and_loud_channel(*shape: int) -> np.ndarray:
    tokens = drawn(*shape)
    tokens[:, :, 5] *= 1e6
    tokens[:, -1] = 1e9 * (1 + 0.1 * drawn(*shape[::2], seed=2))
    return tokens


@pytest.mark.parametrize("shape", [(2, 197, 48), (1, 17, 48), (3, 9, 16), (2, 400, 12)])
def test_an_error_in_one_channel_fails_beside_a_padding_row_and_a_loud_channel(
    shape: tuple[int, ...],
) -> None:
    tokens = with_padding_and_loud_channel(*shape)
    assert share(tokens, rounded(tokens)) < 1
    own = float(np.sqrt(np.square(tokens[:, :-1, 3]).mean()))
    candidate = tokens.copy()
    some = max(1, shape[1] // 100)
    candidate[0, 1 : 1 + some, 3] += np.float32(0.1 * own)
    assert share(tokens, candidate) > 100


def test_an_error_in_the_loud_channel_or_the_padding_row_fails_at_its_own_scale() -> None:
    tokens = with_padding_and_loud_channel(2, 50, 24)
    for place, size in (((0, 3, 5), 1e5), ((1, -1, 7), 1e8)):
        candidate = tokens.copy()
        candidate[place] += size
        assert share(tokens, candidate) > 100


def test_a_quiet_channel_is_held_to_its_own_scale_and_to_what_rounding_explains() -> None:
    tokens = drawn(2, 50, 24)
    tokens[:, :, 4] *= 1e-6
    candidate = tokens.copy()
    candidate[0, 7, 4] += np.float32(1e-7)
    assert share(tokens, candidate) > 100
    explained = np.zeros(tokens.shape)
    explained[:, :, 4] = 2e-7
    assert share(tokens, candidate, Neighbourhoods(tokens).rounding_error(explained)) < 1


@pytest.mark.parametrize("value", [LOWEST, -np.inf, -65504.0, 1e9, -1e4])
def test_fills_are_compared_apart(value: float) -> None:
    logits = drawn(2, 13, 8)
    mask = np.zeros(logits.shape, bool)
    mask[0, :, 6:], mask[1, :, 4:] = True, True
    logits[mask] = value
    np.testing.assert_array_equal(fills(logits), mask)
    assert share(logits, np.where(mask, logits, rounded(np.where(mask, 0, logits)))) < 1
    moved = logits.copy()
    moved[0, 0, 6], moved[0, 0, 5] = moved[0, 0, 5], moved[0, 0, 6]
    assert share(logits, moved) > 100
    off = logits.copy()
    off[0, 0, 0] += np.float32(0.1)
    assert share(logits, off) > 100


def test_a_fill_in_most_classes_of_one_row_a_sample_hides_nothing() -> None:
    logits = drawn(3, 10)
    logits[:, 3:] = LOWEST
    off = logits.copy()
    off[1, 1] += np.float32(1e-3)
    assert share(logits, off) > 1
    assert share(logits, logits) == 0


def test_a_fill_of_another_size_is_an_error() -> None:
    logits = drawn(2, 12)
    logits[:, 8:] = -1e9
    other = logits.copy()
    other[0, 9] = -1e9 * (1 + 1e-6)
    assert share(logits, other) > 1


def test_a_fill_beyond_a_half_type_may_come_back_as_an_infinity_in_that_type_alone() -> None:
    logits = drawn(2, 12)
    logits[:, 8:] = LOWEST
    other = logits.copy()
    other[:, 8:] = -np.inf
    around = Neighbourhoods(logits)
    rounding_error = around.rounding_error(np.zeros(logits.shape))
    for computed_in, passes in (("bfloat16", True), ("float16", True), ("float32", False)):
        found = worst(logits, other, around.allowed(rounding_error, 1e-2, computed_in))
        assert found is not None
        assert (found.share <= 1) == passes


@pytest.mark.parametrize(
    ("values", "filled"),
    [
        (np.array([[0.0, 1.0, 1.0, 0.0, 1.0]]), 0),  # a mask of floats
        (np.array([[1.0, 2.0, 13.0, 13.0, 1.0]]), 0),  # sizes of tokens
        (np.full((1, 6), 0.3123), 0),  # one constant
        (np.array([[0.1, 0.2, 0.3, 1e9, 0.2]]), 0),  # one loud value, which is no constant
        (np.array([[0.1, 0.2, 0.3, np.inf, 0.2]]), 1),
        (np.array([[0.1, 0.2, 1e9, 1e9, -np.inf]]), 3),
        (np.array([[0.1, LOWEST, 1e9, -1e9, 0.2, 0.3]]), 3),
    ],
)
def test_what_is_a_fill(values: np.ndarray, filled: int) -> None:
    assert int(fills(values).sum()) == filled


def test_boxes_beside_scores_are_held_apart() -> None:
    boxes = np.abs(drawn(1, 30, 4)) * 200
    scores = np.abs(drawn(1, 30, 2, seed=3)) * 0.1
    both = np.concatenate([boxes, scores], axis=2)
    off = both.copy()
    off[0, 3, 5] += np.float32(1e-4)
    assert share(both, off) > 10
    assert share(both, rounded(both)) < 1


def test_a_channel_of_a_map_has_its_own_scale() -> None:
    maps = drawn(2, 8, 6, 6)
    maps[:, 2] *= 1e4
    off = maps.copy()
    off[0, 3, 2, 2] += np.float32(1e-2)
    assert share(maps, off) > 100
    assert share(maps, rounded(maps)) < 1


def test_one_number_a_sample_is_held_to_those_of_all_samples() -> None:
    numbers = drawn(40, 1)
    numbers[7] = 1e-7  # near a zero crossing: its error is that of its neighbours
    off = numbers.copy()
    off[7] += np.float32(1e-6)
    assert share(numbers, off) < 1
    off[7] += np.float32(1e-3)
    assert share(numbers, off) > 1
    assert share(numbers[:, 0], off[:, 0]) > 1


def test_one_number_a_sample_may_be_told_the_scale_of_its_kind_of_inputs() -> None:
    numbers = np.array([1.0, 1e3, 2e3, 1.5e3, 1.2, 0.5])[:, None]
    rounding_error = Neighbourhoods(numbers).rounding_error(np.zeros(numbers.shape))
    own, given = (
        limits(numbers, rounding_error, FLOOR, "float32", 1, scale)[:, 0]
        for scale in (None, np.array([1.0, 1e3, 1e3, 1e3, 1.0, 1.0]))
    )
    assert own[0] > 1e-3
    np.testing.assert_allclose(given, [1e-5, 1e-2, 2e-2, 1.5e-2, 1.2e-5, 1e-5], rtol=1e-6)


def test_a_value_is_allowed_no_more_than_its_column_but_a_share_of_itself() -> None:
    rows = np.array([[300.0, 200, 500, 400, 0.04], [100, LOWEST, 1e6, 400, 0.5]], np.float32)
    rounding_error = Neighbourhoods(rows).rounding_error(np.full(rows.shape, 1e-2))
    columns = np.array([1e-3, 1e-3, 1e-3, 1, 1e-6])
    found = limits(rows, rounding_error, FLOOR, "float32", 1, None, np.tile(columns, (2, 1)))
    np.testing.assert_allclose(found[0], [3e-3, 2e-3, 5e-3, 1e-2, 1e-6], rtol=1e-5)
    np.testing.assert_allclose(found[1, [0, 2, 3, 4]], [1e-3, 10, 1e-2, 5e-6], rtol=1e-5)
    assert found[1, 1] > 1e30  # a fill
    short = limits(
        rows[:, 2:], rounding_error, FLOOR, "float32", 1, None, np.tile(columns[2:], (2, 1))
    )
    np.testing.assert_allclose(short[0], [5e-3, 1, 1e-6], rtol=1e-5)


@pytest.mark.parametrize("few", [1, 2, 5])
def test_a_channel_of_mostly_zeros_has_the_scale_of_its_other_values(few: int) -> None:
    tokens = drawn(2, 40, 12)
    tokens[:, :, 4:] *= 1e6
    tokens[:, few:, 3] = 0
    off = tokens.copy()
    off[0, 0, 3] *= np.float32(1.1)
    assert share(tokens, off) > 100
    assert share(tokens, rounded(tokens)) < 1
    off = tokens.copy()
    off[0, -1, 3] = 1e-3
    assert share(tokens, off) > 10


def test_a_value_that_is_small_by_chance_in_a_loud_channel_is_held_to_its_channel() -> None:
    tokens = drawn(2, 60, 24)
    tokens[:, :, 5] *= 50
    tokens[0, 8, 5] = 0.1  # computed from numbers of the size of 50
    off = tokens.copy()
    off[0, 8, 5] += np.float32(1e-4)
    assert share(tokens, off) < 1
    off[0, 8, 5] += np.float32(5e-3)
    assert share(tokens, off) > 1


def test_what_rounding_does_to_a_repeated_loud_constant_widens_it_and_no_end_of_a_type() -> None:
    logits = drawn(2, 12)
    logits[:, 6:9], logits[:, 9:11], logits[:, 11] = 2e6, LOWEST, np.inf
    off = logits.copy()
    off[:, 6:9] *= np.float32(1 + 1e-6)
    assert share(logits, off) > 1
    moved = np.where(fills(logits) & np.isfinite(logits), 2e-6 * np.abs(logits), 0)
    rounding_error = Neighbourhoods(logits).rounding_error(moved)
    assert share(logits, off, rounding_error) < 1
    off[:, 9:11] *= np.float32(1 - 1e-6)
    assert share(logits, off, rounding_error) > 1
    other = logits.copy()
    other[0, 11], other[0, 0] = other[0, 0], other[0, 11]
    assert share(logits, other, rounding_error) == np.inf


def test_an_output_of_rectified_values_is_held_to_those_that_are_not_zero() -> None:
    maps = np.maximum(drawn(2, 40, 16), 0)
    off = maps.copy()
    place = tuple(np.argwhere(maps == 0)[0])
    off[place] = 1e-6
    assert share(maps, off) < 1
    off[place] = 1e-3
    assert share(maps, off) > 10


@pytest.mark.parametrize("shape", [(2, 0), (0, 4), (2, 3, 0)])
def test_an_empty_output_has_no_worst_value(shape: tuple[int, ...]) -> None:
    empty = np.zeros(shape, np.float32)
    around = Neighbourhoods(empty)
    assert worst(empty, empty, around.allowed(around.rounding_error(empty), FLOOR)) is None


def test_a_nan_is_outside_everywhere() -> None:
    tokens = with_padding_and_loud_channel(1, 12, 8)
    for place in ((0, 2, 3), (0, -1, 2), (0, 1, 5)):
        off = tokens.copy()
        off[place] = np.nan
        assert share(tokens, off) == np.inf
    assert differences(np.array([np.inf]), np.array([-np.inf]))[0] == np.inf


def test_samples_run_over_the_axis_of_the_batch_where_an_output_has_it() -> None:
    outputs = drawn(3, 4, 5)
    assert as_samples(outputs, 4).shape == (12, 5)
    assert as_samples(outputs, 2).shape == (3, 4, 5)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 12), min_size=0, max_size=3),
    st.integers(0, 2**31),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e6, 1e30]),
)
def test_rounding_passes_in_any_shape_and_a_hundredth_fails(
    inner: list[int], seed: int, scale: float
) -> None:
    values = (drawn(2, *inner, seed=seed) * np.float32(scale)).astype(np.float32)
    off = (values * (1 + 4 * epsilon("float32"))).astype(np.float32)
    assert share(values, off) <= 1
    around = Neighbourhoods(values)
    wrong = values.reshape(2, -1).copy()
    wrong[0, 0] += np.float32(0.3 * max(np.abs(values).max(), scale))
    assert share(values, wrong.reshape(values.shape)) > 1
    assert all(scale.shape[0] == 2 for scale in around.scales)
