from __future__ import annotations

import numpy as np
import pytest

from tokexport.exporter.speed.confidence_sequence import MIN_VALUES, interval_at_every_look

LOOKS = range(MIN_VALUES, 41)


def ever_excluded(series: np.ndarray, mean: float) -> float:
    """The share of series (runs, n) of which an interval leaves out a mean at some look."""
    excluded = [
        any(
            abs(found.mean - mean) > found.half_width
            for found in (interval_at_every_look(values[:count]) for count in LOOKS)
        )
        for values in series
    ]
    return float(np.mean(excluded))


def correlated(random: np.random.Generator, runs: int, by: float) -> np.ndarray:
    """Series (runs, n) of deviation 1 of which each value resembles the one before."""
    fresh = random.normal(0, 1, (runs, LOOKS.stop))
    series = fresh.copy()
    for place in range(1, LOOKS.stop):
        series[:, place] = by * series[:, place - 1] + np.sqrt(1 - by * by) * fresh[:, place]
    return series


def test_few_values_say_nothing_and_equal_ones_leave_no_width() -> None:
    values = np.full(MIN_VALUES, 0.5)
    assert interval_at_every_look(values[:-1]).half_width == np.inf
    assert interval_at_every_look(values).half_width == 0
    assert interval_at_every_look(values).mean == 0.5


def test_the_width_scales_with_the_values_and_shrinks_with_their_number() -> None:
    values = np.random.default_rng(0).normal(0, 1, 40)
    one, shifted, tenth = map(interval_at_every_look, (values, values + 3, values / 10))
    assert shifted.half_width == pytest.approx(one.half_width)
    assert tenth.half_width == pytest.approx(one.half_width / 10)
    assert one.half_width < interval_at_every_look(values[:10]).half_width


def test_a_smaller_confidence_makes_a_narrower_interval() -> None:
    values = np.random.default_rng(0).normal(0, 1, 12)
    wide, narrow = (interval_at_every_look(values, share).half_width for share in (0.95, 0.8))
    assert narrow < wide


def test_the_interval_of_six_values_is_that_of_the_formula() -> None:
    values = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])  # neighbours differ: nothing is corrected
    found = interval_at_every_look(values)
    # at the ends of the interval the mixture is 20 times as likely as the mean
    t_squared = 6 * found.half_width**2 / values.var(ddof=1)
    p, n, q = 0.25, 6, t_squared / 5
    likelier = np.sqrt(p / (n + p)) * ((1 + q) / (1 + q * p / (n + p))) ** (n / 2)
    assert likelier == pytest.approx(20)


def test_the_mean_is_left_out_at_some_look_in_at_most_one_series_of_twenty() -> None:
    series = np.random.default_rng(1).normal(7, 3, (150, LOOKS.stop))
    assert ever_excluded(series, 7) <= 0.05


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["normal", "heavy", "three values", "correlated"])
def test_the_mean_is_left_out_seldom_whatever_the_values(kind: str) -> None:
    random = np.random.default_rng(2)
    shape = (2000, LOOKS.stop)
    series = {
        "normal": random.normal(0, 1, shape),
        "heavy": random.standard_t(3, shape),
        "three values": random.choice([-1.0, 0.0, 1.0], shape) + random.normal(0, 0.1, shape),
        "correlated": correlated(random, shape[0], 0.3),
    }[kind]
    assert ever_excluded(series, 0) <= 0.05 * (2 if kind == "correlated" else 1)


def test_resembling_neighbours_widen_the_interval() -> None:
    random = np.random.default_rng(3)
    steady = correlated(random, 60, 0.7)
    mixed = np.array([random.permutation(values) for values in steady])
    widths = [
        np.median([interval_at_every_look(values).half_width for values in series])
        for series in (steady, mixed)
    ]
    assert widths[0] > 1.5 * widths[1]
