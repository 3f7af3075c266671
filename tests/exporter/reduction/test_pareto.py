from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokexport.exporter.reduction.pareto import front

numbers = st.integers(0, 5).map(float)


def test_by_hand() -> None:
    points = [(1.0, 1.0), (2.0, 0.9), (1.5, 0.9), (2.0, 0.9), (3.0, 0.5), (2.5, 0.4)]
    assert front(points) == [True, True, False, True, True, False]


@given(st.lists(st.tuples(numbers, numbers), min_size=1))
def test_each_point_is_on_it_or_beaten_by_one_that_is(points: list[tuple[float, float]]) -> None:
    on = front(points)
    best = [point for point, is_on in zip(points, on, strict=True) if is_on]
    assert best
    for point, is_on in zip(points, on, strict=True):
        beaten = any(a >= point[0] and b >= point[1] and (a, b) != point for a, b in best)
        assert beaten != is_on
