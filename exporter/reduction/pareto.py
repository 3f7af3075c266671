"""Says which points of a trade-off no other point beats."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Returns for each point whether it is on the Pareto front; in both numbers more is better.

    A point is off the front where another is at least as good in both and better in one; of equal
    points all are on it or none.
    """
    return [not any(a >= x and b >= y and (a > x or b > y) for a, b in points) for x, y in points]
