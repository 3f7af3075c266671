from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tokexport.exporter.sweep.pareto import Standing, Trade, front

numbers = st.integers(0, 5).map(float)
trades = st.builds(
    lambda one, other, quality: Trade(min(one, other), max(one, other), quality),
    numbers,
    numbers,
    numbers,
)
ON, OFF, OPEN = Standing.ON, Standing.OFF, Standing.OPEN


def on_front_at(points: list[tuple[float, float]]) -> list[bool]:
    """The front of exact speeds, by its definition."""
    return [not any(a >= x and b >= y and (a > x or b > y) for a, b in points) for x, y in points]


def test_exact_speeds_by_hand() -> None:
    points = [(1.0, 1.0), (2.0, 0.9), (1.5, 0.9), (2.0, 0.9), (3.0, 0.5), (2.5, 0.4)]
    assert front([Trade(speed, speed, quality) for speed, quality in points]) == [
        *(ON, ON, OFF, ON, ON, OFF)
    ]


def test_speeds_that_overlap_leave_it_open() -> None:
    best = Trade(1.0, 1.0, 1.0)
    assert front([best, Trade(1.1, 1.3, 0.9), Trade(1.2, 1.5, 0.8)]) == [ON, ON, OPEN]
    assert front([best, Trade(0.9, 1.3, 0.9)]) == [ON, OPEN]
    assert front([best, Trade(0.7, 0.9, 0.9)]) == [ON, OFF]
    assert front([best, Trade(0.9, 1.1, 1.0)]) == [OPEN, OPEN]


@given(st.lists(trades, min_size=1, max_size=5))
def test_it_is_what_holds_at_every_speed_within_the_intervals(points: list[Trade]) -> None:
    """Whether a point is beaten turns on the ends: its own against those of the others."""
    ends = itertools.product(*({point.low, point.high} for point in points))
    fronts = [
        on_front_at([(x, point.quality) for x, point in zip(speeds, points, strict=True)])
        for speeds in ends
    ]
    for number, standing in enumerate(front(points)):
        found = {one[number] for one in fronts}
        if standing is ON:
            assert found == {True}
        elif standing is OFF:
            assert found == {False}
        else:  # beaten at some speeds, and by no single point at all of them
            assert False in found


@given(st.lists(trades, min_size=1, max_size=6))
def test_a_point_of_the_best_quality_alone_is_on_it(points: list[Trade]) -> None:
    best = max(point.quality for point in points)
    if sum(point.quality == best for point in points) == 1:
        (number,) = [n for n, point in enumerate(points) if point.quality == best]
        assert front(points)[number] is ON
