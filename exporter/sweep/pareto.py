"""Finds the points of a trade-off that no other point beats, given intervals of speed."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Standing(enum.StrEnum):
    """Whether a point is on the front."""

    ON = "on"  #: on the front, whatever the true speeds within the intervals are
    OFF = "off"  #: beaten, whatever they are
    OPEN = "open"  #: on it or beaten, depending on the true speeds


@dataclass(frozen=True)
class Trade:
    """A point: in both numbers more is better.

    Attributes:
        low: The lower end of the interval that its speed lies in.
        high: The upper end.
        quality: What is compared beside the speed; known exactly on the samples.
    """

    low: float
    high: float
    quality: float


def front(points: Sequence[Trade]) -> list[Standing]:
    """Returns for each point whether it is on the Pareto front.

    A point is beaten where another is at least as good in both numbers and better in one; of equal
    points none beats another. It is on the front where that is so for no speeds within the
    intervals: against each other point it is of better quality, or faster from end to end of both
    intervals. It is off the front where one point beats it for all speeds.
    """
    return [_standing(number, points) for number in range(len(points))]


def _standing(number: int, points: Sequence[Trade]) -> Standing:
    own = points[number]
    others = [point for position, point in enumerate(points) if position != number]
    if any(_beats(other, own) for other in others):
        return Standing.OFF
    return Standing.OPEN if any(_may_beat(other, own) for other in others) else Standing.ON


def _beats(one: Trade, other: Trade) -> bool:
    """Returns whether a point beats another at its worst speed and the best of the other."""
    if one.quality > other.quality:
        return one.low >= other.high
    return one.quality == other.quality and one.low > other.high


def _may_beat(one: Trade, other: Trade) -> bool:
    """Returns whether a point beats another at its best speed and the worst of the other."""
    if one.quality > other.quality:
        return one.high >= other.low
    return one.quality == other.quality and one.high > other.low
