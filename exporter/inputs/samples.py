"""Chooses samples and cuts them into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

#: Passes items on, one by one, and may show how many are done.
Watch = Callable[[Iterable[int], int], Iterator[int]]


def unwatched(many: Iterable[int], count: int) -> Iterator[int]:
    """Passes items on, and shows nothing."""
    return iter(many)


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Returns the positions of evenly spaced samples, from the first on; all if there are fewer."""
    wanted = min(count, wanted)
    return [index * count // wanted for index in range(wanted)]


def cut(array: np.ndarray, batch: int) -> np.ndarray:
    """Cuts (samples, …) into (⌈samples/N⌉, N, …), the last sample repeated to the end.

    Args:
        array: The samples.
        batch: How many go into a batch, N.
    """
    padding = -len(array) % batch
    if padding:
        array = np.concatenate([array, np.repeat(array[-1:], padding, axis=0)])
    return array.reshape(-1, batch, *array.shape[1:])
