from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tokexport.runtimes.tolerances.comparison import (
    Channels,
    compare,
    spread,
    unexplained_top1,
)
from tokexport.runtimes.tolerances.scales import fills

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
FLOATS = st.sampled_from([np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)])


@st.composite
def float_pairs(
    draw: st.DrawFn, *, finite: bool = True, moderate: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of one shape; moderate values keep squares and sums far from the limits."""
    shape = draw(SHAPES)
    if moderate:
        elements: Any = st.integers(-4000, 4000).map(lambda n: n / 8)
        return (
            draw(hnp.arrays(np.float64, shape, elements=elements)),
            draw(hnp.arrays(np.float64, shape, elements=elements)),
        )
    limits: dict[str, Any] = {"allow_nan": not finite, "allow_infinity": not finite}
    dtypes = draw(FLOATS), draw(FLOATS)
    first, second = (
        draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **limits))) for dtype in dtypes
    )
    return first, second


@given(pair=float_pairs())
def test_an_output_agrees_with_itself(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, _ = pair
    found = compare(reference, reference.copy())
    assert (found.max_abs, found.mean_abs, found.relative) == (0.0, 0.0, 0.0)
    assert found.cosine == pytest.approx(1.0)
    assert found.top1_agreement in (None, 1.0)


@given(pair=float_pairs(moderate=True))
def test_the_figures_are_those_of_their_definitions(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, candidate = pair
    # A constant that repeats far beyond all else stands apart.
    assume(not reference.ndim or not fills(reference).any())
    a, b = reference.ravel().tolist(), candidate.ravel().tolist()
    distances = [abs(x - y) for x, y in zip(a, b, strict=True)] or [0.0]
    scale = max([abs(x) for x in a], default=0.0)
    found = compare(reference, candidate)
    assert found.max_abs == max(distances)
    assert found.mean_abs == pytest.approx(math.fsum(distances) / len(distances))
    assert found.scale == scale
    assert found.rms == pytest.approx(math.hypot(*distances) / math.sqrt(len(distances)))
    assert found.relative == (max(distances) / scale if scale else max(distances))
    norms = math.hypot(*a) * math.hypot(*b)
    if norms:
        dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
        assert found.cosine == pytest.approx(dot / norms, abs=1e-12)


@given(pair=float_pairs())
def test_the_figures_stay_within_their_bounds(pair: tuple[np.ndarray, np.ndarray]) -> None:
    found = compare(*pair)
    assert 0.0 <= found.mean_abs <= found.max_abs
    assert 0.0 <= found.rms <= found.max_abs
    assert -1.0 <= found.cosine <= 1.0
    assert found.top1_agreement is None or 0.0 <= found.top1_agreement <= 1.0
    assert not math.isnan(found.relative)


@given(pair=float_pairs())
def test_exchanging_the_sides_changes_only_the_scale(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    one, other = compare(*pair), compare(*reversed(pair))
    assert one.max_abs == other.max_abs
    assert one.mean_abs == other.mean_abs
    assert one.cosine == pytest.approx(other.cosine)
    assert one.top1_agreement == other.top1_agreement


@given(pair=float_pairs(moderate=True), exponent=st.integers(-300, 300))
def test_relative_error_and_cosine_do_not_depend_on_the_unit(
    pair: tuple[np.ndarray, np.ndarray], exponent: int
) -> None:
    unit = 2.0**exponent
    one, other = compare(*pair), compare(pair[0] * unit, pair[1] * unit)
    if one.scale:
        assert other.relative == pytest.approx(one.relative)
    assert other.cosine == pytest.approx(one.cosine)


@given(pair=float_pairs(finite=False))
def test_anything_that_is_not_finite_agrees_only_with_its_equal(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    reference, candidate = (array.astype(np.float64) for array in pair)
    bad = ~(np.isfinite(reference) & np.isfinite(candidate)) & (reference != candidate)
    found = compare(*pair)
    if bad.any():
        assert found.max_abs == found.mean_abs == found.relative == math.inf
        assert found.cosine == 0.0
    else:
        agreed = np.isfinite(reference)
        assert found.max_abs == compare(reference[agreed], candidate[agreed]).max_abs


@given(
    reference=hnp.arrays(np.float32, (3, 4), elements=st.integers(-99, 99), unique=True),
    place=st.tuples(st.integers(0, 2), st.integers(0, 3)),
)
def test_a_nan_in_the_candidate_is_an_infinite_error(
    reference: np.ndarray, place: tuple[int, int]
) -> None:
    candidate = reference.copy()
    candidate[place] = np.nan
    found = compare(reference, candidate)
    assert found.relative == math.inf
    # The row of the NaN does not agree, even where argmax would return the same place.
    assert found.top1_agreement == pytest.approx(2 / 3)


def test_a_nan_agrees_with_no_nan() -> None:
    both = np.array([1.0, np.nan])
    assert compare(both, both).max_abs == math.inf


def test_equal_infinities_agree_and_opposite_ones_do_not() -> None:
    masked = np.array([1.0, -np.inf, 2.0], np.float32)
    found = compare(masked, masked.copy())
    assert (found.max_abs, found.scale, found.cosine) == (0.0, 2.0, pytest.approx(1.0))
    assert compare(masked, -masked).max_abs == math.inf


def test_a_zero_reference_has_the_absolute_error_as_its_relative_one() -> None:
    found = compare(np.zeros(4), np.full(4, 0.25))
    assert (found.scale, found.relative, found.cosine) == (0.0, 0.25, 0.0)
    assert compare(np.zeros(4), np.zeros(4)).cosine == 1.0


def test_the_arithmetic_is_in_float64() -> None:
    # In float16 the difference of these two would be 0, or their squares infinite.
    reference = np.array([60000.0, 0.5], np.float16)
    candidate = np.array([60000.0, 0.5 + 2**-20], np.float32)
    found = compare(reference, candidate)
    assert found.max_abs == 2**-20
    assert found.cosine == pytest.approx(1.0)


def test_top1_counts_rows_along_the_last_axis() -> None:
    reference = np.array([[[0.0, 1.0], [1.0, 0.0]], [[3.0, 2.0], [0.0, 5.0]]])
    candidate = reference.copy()
    candidate[1, 0] = [2.0, 3.0]
    assert compare(reference, candidate).top1_agreement == 0.75
    assert compare(reference[..., :1], candidate[..., :1]).top1_agreement is None
    assert compare(np.array(1.0), np.array(2.0)).top1_agreement is None


@given(
    data=st.data(),
    dtype=st.sampled_from([np.int64, np.int8, np.uint64, np.bool_]),
)
def test_whole_numbers_are_judged_by_the_fraction_that_differs(
    data: st.DataObject, dtype: type
) -> None:
    shape = data.draw(SHAPES)
    reference = data.draw(hnp.arrays(dtype, shape))
    candidate = data.draw(hnp.arrays(dtype, shape))
    found = compare(reference, candidate)
    pairs = list(zip(reference.ravel().tolist(), candidate.ravel().tolist(), strict=True))
    differing = sum(a != b for a, b in pairs) / max(len(pairs), 1)
    assert found.relative == pytest.approx(differing)
    assert (found.relative == 0.0) == (pairs == [(a, a) for a, _ in pairs])
    assert found.scale == 1.0
    assert found.top1_agreement is None


def test_neighbouring_large_integers_differ_though_float64_cannot_tell_them_apart() -> None:
    large = np.array([2**60, 1], np.int64)
    found = compare(large, large + np.array([1, 0]))
    assert found.max_abs == 0.0
    assert found.relative == 0.5


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(3), np.zeros((1, 3))),
        (np.zeros(3), np.zeros(3, np.int64)),
        (np.zeros(3, np.complex64), np.zeros(3, np.complex64)),
        (np.array(["a"]), np.array(["a"])),
    ],
)
def test_what_cannot_be_compared_is_refused(reference: np.ndarray, candidate: np.ndarray) -> None:
    with pytest.raises(ValueError, match="shapes differ|cannot be compared"):
        compare(reference, candidate)


@given(
    reference=hnp.arrays(np.float64, (3, 2, 4), elements=st.integers(-999, 999)),
    answer=hnp.arrays(np.float64, 4, elements=st.integers(-999, 999)),
)
def test_one_answer_for_every_sample_is_a_spread_off_at_least(
    reference: np.ndarray, answer: np.ndarray
) -> None:
    found = spread(reference, 2)
    columns = reference.reshape(6, 4).T.tolist()
    apart = [x - math.fsum(column) / 6 for column in columns for x in column]
    assert found == pytest.approx(math.hypot(*apart) / math.sqrt(24))
    assert compare(reference, np.broadcast_to(answer, (3, 2, 4))).rms >= found * (1 - 1e-12)
    mean = reference.mean(axis=(0, 1))
    assert compare(reference, np.broadcast_to(mean, (3, 2, 4))).rms == pytest.approx(found)


def test_the_spread_leaves_out_what_is_not_finite() -> None:
    masked = np.array([[1.0, -np.inf], [3.0, -np.inf], [5.0, 7.0]])
    assert spread(masked, 1) == pytest.approx(math.sqrt((4 + 0 + 4 + 0) / 4))
    assert spread(np.full((2, 3), np.nan), 1) == 0.0
    assert spread(np.array([-1e308, 1e308]), 1) == pytest.approx(1e308)


def test_a_fill_is_no_part_of_a_spread_nor_of_a_channel() -> None:
    logits = np.random.default_rng(0).standard_normal((40, 10))
    logits[:, 7:] = np.finfo(np.float32).min
    assert 0.8 < spread(logits, 1) < 1.2
    channels = Channels({1: np.full(10, 0.1)}, np.zeros(10))
    assert channels.failure(logits, logits) == ""
    off = logits.copy()
    off[:, 3] += 0.11  # and a tenth more is allowed, of 40 values
    assert channels.failure(logits, off) == ""
    off[:, 3] += 0.02
    assert "at index 3 of axis 1, and 1.16e-01 is allowed" in channels.failure(logits, off)


def test_a_channel_is_held_to_what_is_allowed_for_it_on_every_axis() -> None:
    tokens = np.random.default_rng(0).standard_normal((4, 30, 6))
    allowed = {1: np.full(30, 1.0), 2: np.array([1.0, 1.0, 1e-3, 1.0, 1.0, 0.0])}
    channels = Channels(allowed, np.full(6, 10.0))
    assert channels.failure(tokens, tokens) == ""
    for place in ((2, 7, 2), (0, 0, 5), (1, 9, 3)):
        off = tokens.copy()
        off[place] += 0.1
        assert bool(channels.failure(tokens, off)) == (place[2] != 3)
    off = tokens.copy()
    off[:, 4] = np.nan
    assert "of axis 1" in channels.failure(tokens, off)


def test_a_largest_entry_moves_as_far_as_its_channels_may_be_off() -> None:
    scores = np.zeros((200, 3))
    scores[:, 0], scores[:, 1] = 0.3, 500.0
    scores[:, 2] = 499.0
    off = scores.copy()
    off[0, 1:] = 499.0, 500.0
    wide, narrow = np.array([1.0, 0.6, 0.6]), np.array([1.0, 0.1, 0.1])
    assert Channels({1: np.ones(3)}, wide).failure(scores, off) == ""
    assert "no near-tie" in Channels({1: np.ones(3)}, narrow).failure(scores, off)


@pytest.mark.parametrize(("margin", "said"), [(0.01, False), (0.5, True)])
def test_a_largest_entry_moves_only_where_it_is_nearly_tied(margin: float, said: bool) -> None:
    logits = np.array([[0.0, 1.0, 1.0 - margin, 0.2]])
    moved = np.array([[0.0, 1.0, 1.1, 0.2]])
    found = unexplained_top1(logits, moved, np.full(logits.shape, 0.02))
    assert bool(found) == said
    assert unexplained_top1(logits, logits, np.zeros(logits.shape)) == ""
    assert unexplained_top1(np.zeros((3, 1)), np.ones((3, 1)), np.zeros((3, 1))) == ""
