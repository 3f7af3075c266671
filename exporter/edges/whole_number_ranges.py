"""Finds the range of an input's whole numbers in which eager and the artifact agree.

Ranges grow by rungs, both ends at once as long as they can. Where a rung fails, each end goes on by
itself, and between the last number that works and the first that does not it halves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

import numpy as np

from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.reference import run_reference
from tokexport.exporter.edges.edge_inputs import RUNGS, between, joined
from tokexport.exporter.errors import ExporterError, NotFiniteError
from tokexport.exporter.inputs.batches import Batches
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import TensorSpec
from tokexport.runtimes.errors import RuntimesError
from tokexport.runtimes.tolerances.comparison import compare
from tokexport.runtimes.tolerances.neighbourhoods import Neighbourhoods, worst

#: How far floating outputs may be off where only the whole numbers are in question.
_COARSE: Final = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 0.2}
#: The share of a whole output that int8 may be off by there, at least and at most.
_INT8: Final = 1e-3, 0.5
#: How many times as much as on the first batch it may be off there.
_INT8_FACTOR: Final = 4.0
_OTHERWISE: Final = "the artifact answers otherwise than eager"

#: Runs a stage on some batches; gives (batches, …) by output.
RunBatches = Callable[[Batches], Mapping[str, Array]]


@dataclass(frozen=True)
class Reach:
    """The range of an input's whole numbers.

    Attributes:
        low: The lowest.
        high: The highest.
        why: What happens above, below or beyond both, a clause; '' where all that was tried agrees.
    """

    low: int
    high: int
    why: str


class RangeSearch:
    """Searches the range of one input after another, the others as in the first batch.

    Args:
        model: Takes and gives flat tensors.
        first: A batch that it takes.
        run: Runs the stage that is compared with it.
        precision: The precision of that stage.
    """

    def __init__(
        self, model: FlatModel, first: Mapping[str, Array], run: RunBatches, precision: str
    ) -> None:
        self._model, self._first, self._run = model, dict(first), run
        self._precision = precision
        self._allowed: dict[str, float] = {}
        self._free: dict[str, Array] = {}

    def of(self, spec: TensorSpec, held: Sequence[Array], free: Array) -> Reach:
        """Returns how far an input may reach.

        Args:
            spec: The input.
            held: Values of it on which the stage was compared with eager already.
            free: Which of its numbers are in question; the others stay.
        """
        self._free[spec.name] = free
        if self._precision == "int8" and not self._allowed:
            self._allowed = self._int8_allowed()
        low, high = (int(end([one[free] for one in held])) for end in (np.min, np.max))
        top = int(np.iinfo(spec.dtype).max)
        rungs = sorted({*(rung for rung in RUNGS if rung <= top), min(top, RUNGS[-1])})
        left = [rung for rung in rungs if rung >= max(-low, high)]
        while left and not self._why_not(spec.name, -left[0], left[0]):
            high = left.pop(0)
            low = -high
        if not left:
            return Reach(low, high, "")
        high, above = self._end(high, left, lambda end: self._why_not(spec.name, low, end))
        down = [-rung for rung in left]
        low, below = self._end(low, down, lambda end: self._why_not(spec.name, end, high))
        if above == below:
            return Reach(low, high, above and f"beyond, {above}")
        ends = (("above", above), ("below", below))
        return Reach(low, high, "; ".join(f"{end}, {why}" for end, why in ends if why))

    def _end(
        self, good: int, rungs: Sequence[int], why_not: Callable[[int], str]
    ) -> tuple[int, str]:
        """Returns the farthest number of one side that works, and why the next does not."""
        for bad in rungs:
            why = why_not(bad)
            if why:
                return _farthest(good, bad, why, why_not)
            good = bad
        return good, ""

    def _why_not(self, name: str, low: int, high: int) -> str:
        """Returns why a stage and eager differ on whole numbers of a range; '' if they agree."""
        free = self._free[name]
        own = self._first[name][free]
        tried = [between(own, low, high)]
        if own.size == 1:
            tried = [np.full_like(own, end) for end in dict.fromkeys((low, high))]
        return next(filter(None, (self._why_not_on(name, values) for values in tried)), "")

    def _why_not_on(self, name: str, values: Array) -> str:
        """Returns why a stage and eager differ with these numbers in an input; '' if they agree."""
        given = self._first[name].copy()
        given[self._free[name]] = values
        batch = self._first | {name: given}
        one = joined(tuple(batch), {"whole numbers": batch})
        try:
            wanted = run_reference(self._model, one, twice=False).outputs
        except NotFiniteError:
            return "the model itself gives NaN"
        except ExporterError:
            return "the model itself refuses them"
        try:
            found = self._run(one)
        except RuntimesError:
            return _OTHERWISE
        agrees = all(
            _off(wanted[each], found[each]) <= self._allowed[each]
            if each in self._allowed
            else near(wanted[each], found[each], self._precision)
            for each in wanted
        )
        return "" if agrees else _OTHERWISE

    def _int8_allowed(self) -> dict[str, float]:
        """Returns by what share of the whole each output may be off in int8."""
        one = joined(tuple(self._first), {"first": self._first})
        wanted = run_reference(self._model, one, twice=False).outputs
        found, (least, most) = self._run(one), _INT8
        return {
            name: min(max(least, _INT8_FACTOR * _off(array, found[name])), most)
            for name, array in wanted.items()
        }


def _farthest(good: int, bad: int, why: str, why_not: Callable[[int], str]) -> tuple[int, str]:
    """Returns the number nearest to a bad one that is good, by doubled steps and then by halves."""
    away = 1 if bad > good else -1
    for step in (away << power for power in count()):
        if abs(step) >= abs(bad - good):
            break
        said = why_not(good + step)
        if said:
            bad, why = good + step, said
            break
        good += step
    while abs(bad - good) > 1:
        middle = (good + bad) // 2
        said = why_not(middle)
        if said:
            bad, why = middle, said
        else:
            good = middle
    return good, why


def _off(wanted: Array, found: Array) -> float:
    """Returns by what share of the whole an output is off, or of its whole numbers."""
    if wanted.shape != found.shape:
        return np.inf
    if wanted.dtype.kind in "iub":
        return compare(wanted, found).relative
    size = compare(wanted, np.zeros_like(wanted)).rms
    return compare(wanted, found).rms / (size or 1.0)


def near(wanted: Array, found: Array, precision: str) -> bool:
    """Returns whether outputs (batches, …) are equal up to a share of the scale around each."""
    if wanted.shape != found.shape or wanted.dtype.kind in "iub":
        return np.array_equal(wanted, found)
    around = Neighbourhoods(wanted)
    tolerance = _COARSE.get(precision, _COARSE["fp32"])
    allowed = around.allowed(around.rounding_error(np.zeros(wanted.shape)), tolerance)
    most = worst(wanted, found, allowed)
    return most is None or most.share <= 1
