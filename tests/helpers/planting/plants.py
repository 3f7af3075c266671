"""Says what faults there are: small mistakes of the kind that a pass, a kernel or an export makes.

A plant is data, so that a list of them can be written down before anything runs. What is done to a
value is one of a few changes, which both graphs of torch and of ONNX can make::

    times   a factor on all of it, or on one index along an axis
    take    its entries along an axis in another order
    bf16    rounded to eight bits
    not     truth values turned over
    back    whole numbers one less, but not below 0

The rest is done to a call: its operands in another order, another number among its arguments, ties
that fall the other way, an input of the model in another's place.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: What is done, as JSON holds it: ``change`` and its parameters.
How = dict[str, Any]


@dataclass(frozen=True)
class Plant:
    """A fault in one place.

    Attributes:
        model: The name of the model.
        stage: The stage whose graph it is planted in.
        node: The node of it, by its name, or by that of its first result in ONNX.
        kind: What kind of mistake it is.
        how: What is done.
    """

    model: str
    stage: str
    node: str
    kind: str
    how: How = field(hash=False)

    @property
    def key(self) -> str:
        """What tells it from every other one."""
        return f"{self.model} | {self.stage} | {self.node} | {self.kind} | {self.how}"


@dataclass(frozen=True)
class Place:
    """A value that a fault can be planted in.

    Attributes:
        node: Its name.
        shape: Its shape.
        dtype: ``float``, ``bool`` or ``int``.
        operator: What gives it, '' where nothing does.
        weight: Whether it is a constant of the model.
        output: Whether it is a result of the model.
        index: Whether it says where rows are.
        fills: Whether it is a constant that holds fills.
        averaged: Over how many values it is a mean; 0 where it is none.
    """

    node: str
    shape: tuple[int, ...]
    dtype: str
    operator: str = ""
    weight: bool = False
    output: bool = False
    index: bool = False
    fills: bool = False
    averaged: int = 0


def faults_of_value(place: Place, draw: random.Random) -> Iterator[tuple[str, How]]:
    """Yields the kinds of faults that a value can have, and what each does there."""
    shape, ndim = place.shape, len(place.shape)
    if 0 in shape:
        return
    if place.dtype == "bool":
        yield "a mask inverted", {"change": "not"}
        if ndim and shape[-1] > 1:
            yield "a fill moved", _rolled(ndim - 1, shape[-1])
        return
    if place.dtype == "int":
        if place.index:
            yield "an index off by one", {"change": "back"}
        return
    if place.fills and shape[-1:] != (1,):
        yield "a fill moved", _rolled(ndim - 1, shape[-1])
    if place.weight:
        yield "a constant stale by 1 %", {"change": "times", "factor": 1.01}
        if ndim == 1 and shape[0] > 1:
            yield "a bias dropped", {"change": "times", "factor": 0.0}
    else:
        yield "an operator in bf16", {"change": "bf16"}
    if place.averaged:
        factor = place.averaged / (place.averaged + 1)
        yield "a wrong mean", {"change": "times", "factor": factor}
    if ndim > 1 and shape[-1] > 1:
        yield "a channel × 1.01", _one(ndim - 1, shape[-1], draw)
    if ndim == 3 and shape[1] > 2:
        yield "a row × 1.01", _one(1, shape[1], draw)
        yield "rows off by one", _rolled(1, shape[1])
    if ndim == 4 and 1 < shape[1] <= 16:
        yield "heads permuted", _rolled(1, shape[1])
    if place.output and ndim > 1 and shape[-1] > 1:
        first = draw.randrange(shape[-1] - 1)
        order = [*range(shape[-1])]
        order[first], order[first + 1] = order[first + 1], order[first]
        yield "two classes swapped", {"change": "take", "axis": ndim - 1, "index": order}


def _rolled(axis: int, size: int) -> How:
    return {"change": "take", "axis": axis, "index": [*range(1, size), 0]}


def _one(axis: int, size: int, draw: random.Random) -> How:
    return {"change": "times", "axis": axis, "at": draw.randrange(size), "factor": 1.01}


def factors(how: Mapping[str, Any], shape: Sequence[int]) -> list[float]:
    """Returns the factors along the axis of ``times``; one where it is the whole value."""
    if "axis" not in how:
        return [how["factor"]]
    found = [1.0] * shape[how["axis"]]
    found[how["at"]] = how["factor"]
    return found


def drawn(
    found: Sequence[tuple[str, str, How]], count: int, draw: random.Random
) -> list[tuple[str, str, How]]:
    """Draws so many of the faults (node, kind, how) that a stage can have, the kinds in turn.

    Args:
        found: All of them.
        count: How many at most.
        draw: The generator.
    """
    by_kind: defaultdict[str, list[tuple[str, str, How]]] = defaultdict(list)
    for one in found:
        by_kind[one[1]].append(one)
    for group in by_kind.values():
        draw.shuffle(group)
    chosen: list[tuple[str, str, How]] = []
    while len(chosen) < count and by_kind:
        kinds = [*by_kind]
        draw.shuffle(kinds)
        for kind in kinds[: count - len(chosen)]:
            chosen.append(by_kind[kind].pop())
            if not by_kind[kind]:
                del by_kind[kind]
    return chosen
