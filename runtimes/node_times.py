"""Defines what one node of a model took, as its runtime's own profile says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class NodeTime:
    """The time of one node of a model that a runtime runs.

    Attributes:
        name: What the runtime calls it; it may have joined several nodes of the model, or renamed
            one.
        ms: Milliseconds, the median of some runs.
    """

    name: str
    ms: float


def medians(runs: Iterable[Iterable[tuple[str, float]]]) -> tuple[NodeTime, ...]:
    """Returns the median of every node over some runs, in the order in which they first ran.

    Args:
        runs: Of each run the nodes in order, each with its milliseconds.
    """
    found: dict[str, list[float]] = {}
    for run in runs:
        summed: dict[str, float] = {}
        for name, ms in run:
            summed[name] = summed.get(name, 0.0) + ms
        for name, ms in summed.items():
            found.setdefault(name, []).append(ms)
    return tuple(NodeTime(name, median(times)) for name, times in found.items())
