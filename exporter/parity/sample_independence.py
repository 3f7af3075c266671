"""Finds out whether an artifact answers each sample of a batch alike, whatever the others are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.inputs.samples import unwatched
from tokexport.runtimes.arrays import Array

#: So many batches are run again with other companions.
_BATCHES: Final = 4


def samples_are_independent(
    run: Callable[[Batches], Mapping[str, Array]],
    batches: Batches,
    found: Mapping[str, Array],
    holds: Callable[[Mapping[str, Array], Sequence[int]], bool],
    batch: int,
) -> bool:
    """Returns whether answers stay as they are when the other samples of a batch change.

    Every other sample of a batch is exchanged for one of another place, then the rest are. What
    stayed in its place has to be answered as before: to the bit, or within the gates, since a
    runtime may add in another order.

    Args:
        run: Runs batches; returns (batches, …) by output name.
        batches: The samples.
        found: What ``run`` gave for them.
        holds: Returns whether outputs of some batches are within the gates.
        batch: How many samples the artifact takes at once.
    """
    if batch == 1:
        return True
    rows = min(len(batches), _BATCHES)
    given = {
        name: array[:rows] for name, array in batches.arrays.items() if array.shape[1] == batch
    }
    if not given:
        return False
    before = {name: array[:rows] for name, array in found.items()}
    after = {name: array.copy() for name, array in before.items()}
    for kept in (0, 1):
        mixed = {name: _exchanged(array, kept) for name, array in given.items()}
        others = {name: array[:rows] for name, array in batches.arrays.items()} | mixed
        mixed_batches = replace(
            batches, arrays=others, kinds=(), samples=rows * batch, watch=unwatched
        )
        for name, array in run(mixed_batches).items():
            if array.shape[1:2] == (batch,):
                after[name][:, kept::2] = array[:, kept::2]
    same = (
        np.array_equal(array, after[name], equal_nan=array.dtype.kind == "f")
        for name, array in before.items()
    )
    return all(same) or holds(after, range(rows))


def _exchanged(array: Array, kept: int) -> Array:
    """Returns batches in which every other sample is one of another place.

    Args:
        array: The samples, (batches, N, …).
        kept: The first sample of a batch that stays.
    """
    mixed = np.roll(array.reshape(-1, *array.shape[2:]), 1, axis=0).reshape(array.shape)
    mixed[:, kept::2] = array[:, kept::2]
    return mixed
