"""Finds out whether a sample is answered alike, whatever others are in its batch, and wherever."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.inputs.samples import unwatched
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import within_local_floor

#: So many batches are run again with other companions.
_BATCHES: Final = 2
Answers = Mapping[str, Array]


def samples_are_independent(
    run: Callable[[Batches], Answers],
    batches: Batches,
    found: Answers,
    alike: Callable[[Answers, Answers], bool],
    batch: int,
) -> bool:
    """Returns whether answers stay as they are when the other samples change, or all change places.

    In each round the samples stay whose place has one bit set, or not set, and foreign ones take
    the places of the rest: any two samples are parted so in one of 2 log2 N rounds. In the last
    round each sample goes to the next place.

    Args:
        run: Runs batches; returns (batches, …) by output name.
        batches: The samples.
        found: What ``run`` gave for them.
        alike: Returns whether what stayed was answered as before, as far as rounding allows.
        batch: How many samples are taken at once.
    """
    if batch == 1:
        return True
    rows = min(len(batches), _BATCHES)
    given = {name: array[:rows] for name, array in batches.arrays.items()}
    own = {name for name, array in given.items() if array.shape[1:2] == (batch,)}
    foreign = {name: _foreign(given[name]) for name in own}
    if not own or not _differ(given, foreign, rows, batch):
        return False

    def answers(change: Callable[[str], Array]) -> Answers:
        arrays = {name: change(name) if name in own else array for name, array in given.items()}
        samples = rows * batch
        return run(replace(batches, arrays=arrays, kinds=(), samples=samples, watch=unwatched))

    before = {name: array[:rows] for name, array in found.items()}
    for kept in _kept(batch):
        places = kept.reshape(1, -1)

        def mixed(name: str, places: Array = places) -> Array:
            axes = (1,) * (given[name].ndim - 2)
            return np.where(places.reshape(1, -1, *axes), given[name], foreign[name])

        if not alike(_at(before, kept, batch), _at(answers(mixed), kept, batch)):
            return False
    moved = answers(lambda name: np.roll(given[name], 1, axis=1))
    back = {
        name: np.roll(array, -1, axis=1) if array.shape[1:2] == (batch,) else array
        for name, array in moved.items()
    }
    everywhere = np.ones(batch, bool)
    return alike(_at(before, everywhere, batch), _at(back, everywhere, batch))


def alike_within(share: float) -> Callable[[Answers, Answers], bool]:
    """Returns a comparison that allows values a share of the scale of their neighbourhood.

    Args:
        share: The share; whole numbers have to be equal.
    """

    def alike(before: Answers, after: Answers) -> bool:
        return all(_close(array, after[name], share) for name, array in before.items())

    return alike


def _close(before: Array, after: Array, share: float) -> bool:
    if np.array_equal(before, after, equal_nan=before.dtype.kind == "f"):
        return True
    if before.dtype.kind != "f":
        return False
    flat = (-1, *before.shape[2:])
    return within_local_floor(before.reshape(flat), after.reshape(flat), share)


def _kept(batch: int) -> Iterator[Array]:
    """Yields which places (N,) keep their samples, in each round."""
    places = np.arange(batch)
    for bit in range((batch - 1).bit_length()):
        yield places >> bit & 1 == 0
        yield places >> bit & 1 == 1


def _foreign(array: Array) -> Array:
    """Returns other samples for the places of batches (batches, N, …): others, turned around."""
    other = np.roll(array.reshape(-1, *array.shape[2:]), 1, axis=0).reshape(array.shape)
    return np.flip(other, axis=tuple(range(2, array.ndim)))


def _differ(given: Answers, foreign: Answers, rows: int, batch: int) -> bool:
    """Returns whether the foreign sample of each place is another one than its own."""
    differs = np.zeros((rows, batch), bool)
    for name, array in foreign.items():
        differs |= (given[name] != array).reshape(rows, batch, -1).any(axis=2)
    return bool(differs.all())


def _at(answers: Answers, kept: Array, batch: int) -> Answers:
    """Returns the answers to some places of each batch, of outputs that have the samples."""
    return {name: array[:, kept] for name, array in answers.items() if array.shape[1:2] == (batch,)}
