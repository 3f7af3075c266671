"""Finds the counters of a model, and runs it as if it had run many times before.

Eager runs a few times while a model is proven, an artifact for months: an output that changes at
the tenth or the thousandth run would not be noticed. A counter moves as far in one run as in the
next; it is then set to the value that it will have.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from torch import Tensor

from tokexport.exporter.eager.object_memory import ObjectMemory

#: After how many more runs a model with counters is run again: one by one, then far ahead.
RUNS: Final = (*[1] * 8, 16, 63, 100, 255, 1000, 10**6)
#: How many entries a list is made longer by at most.
_LONGEST: Final = 10**4
#: The place of a number or a list: its holder, and its name or position there.
_Place = tuple[int, Any]


class RunCounters:
    """Numbers and lists that grow as a model runs.

    Args:
        memory: What the model held before its first run.
        classes: Its classes.
    """

    def __init__(self, memory: ObjectMemory, classes: Sequence[type]) -> None:
        self._memory, self._classes = memory, classes
        self._holders: dict[int, Any] = {}
        self._seen: list[dict[_Place, float]] = []

    def look(self) -> None:
        """Records all numbers and the lengths of all lists; called after each of three runs."""
        found: dict[_Place, float] = {}
        for holder, names in (*self._memory.keepers(), *((one, None) for one in self._classes)):
            self._holders[id(holder)] = holder
            found |= {(id(holder), key): now for key, now in _numbers(holder, names)}
        self._seen.append(found)

    def steps(self) -> dict[_Place, float]:
        """Returns what moved equally far in the last two runs, and how far."""
        first, second, third = self._seen[-3:]
        found = {}
        for place, now in third.items():
            before, earlier = second.get(place, now), first.get(place, now)
            if now != before and now - before == before - earlier:
                found[place] = now - before
        return found

    def names(self) -> list[str]:
        """Returns the user's names of the counters."""
        return sorted({_name(self._holders[owner], key) for owner, key in self.steps()})

    def advance(self, runs: int) -> None:
        """Sets every counter to its value after so many more runs."""
        for (owner, key), step in self.steps().items():
            _advance(self._holders[owner], key, step, runs)


def _numbers(holder: Any, names: Sequence[str] | None) -> Iterator[tuple[Any, float]]:
    """Yields the numbers that something holds, by those names, and its length if it is a list."""
    if isinstance(holder, list | deque):
        yield len, len(holder)
    for key, value in _items(holder, names):
        if isinstance(value, int | float | np.number) and not isinstance(value, bool):
            yield key, float(value)
        elif isinstance(value, Tensor | np.ndarray) and _is_one_number(value):
            yield key, float(value.item())


def _items(holder: Any, names: Sequence[str] | None) -> list[tuple[Any, Any]]:
    if isinstance(holder, type):
        return list(vars(holder).items())
    if names is not None:
        return [(name, holder[name]) for name in names if name in holder]
    if isinstance(holder, dict):
        return list(dict.items(holder))
    return list(enumerate(holder)) if len(holder) <= _LONGEST else []


def _is_one_number(value: Tensor | np.ndarray[Any, Any]) -> bool:
    if isinstance(value, np.ndarray):
        return value.size == 1 and value.dtype.kind in "iuf"
    return value.numel() == 1 and value.device.type == "cpu" and not value.is_complex()


def _is_floating(value: Tensor | np.ndarray[Any, Any]) -> bool:
    return value.is_floating_point() if isinstance(value, Tensor) else value.dtype.kind == "f"


def _advance(holder: Any, key: Any, step: float, runs: int) -> None:
    if key is len:
        more = min(int(step) * runs, _LONGEST) if step > 0 else 0
        last = list(holder)[-int(step) :] if more else []
        holder.extend(itertools.islice(itertools.cycle(last), more))
        return
    value = getattr(holder, key) if isinstance(holder, type) else holder[key]
    far = step * runs
    if isinstance(value, Tensor | np.ndarray):
        value += far if _is_floating(value) else int(far)
        return
    later = value + (far if isinstance(value, float | np.floating) else int(far))
    if isinstance(holder, type):
        setattr(holder, key, later)
    else:
        holder[key] = later


def _name(holder: Any, key: Any) -> str:
    if isinstance(holder, type):
        return f"{holder.__name__}.{key}"
    return "a list" if isinstance(holder, list | deque) else f"'{key}'"
