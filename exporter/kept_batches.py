"""Chooses the batches that a bundle carries for ``verify``, and the samples that it compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from tokexport.exporter.errors import GateError
from tokexport.exporter.parity import Proof
from tokexport.runtimes.base import Array

#: How many batches the bundle carries; more only where a gate over all does not hold on so few.
REFERENCE_BATCHES: Final = 4


def kept_batches(proof: Proof, found: Mapping[str, Array]) -> tuple[list[int], Array]:
    """Returns the batches that ``verify`` replays, in order, evenly from all of them.

    They are those on which no near-tie fell differently; where there is none, those with a sample
    on which none did. A gate that holds over all samples lets single ones lie outside, and none is
    left out for that: the choice grows until it holds.

    Args:
        proof: What the hops were held to.
        found: What the last hop gave, (batches, …) by name.

    Returns:
        The batches, and which samples (batches, samples) of them are compared.

    Raises:
        GateError: Nothing is left to verify with.
    """
    hop = proof.hops[-1].name
    count = len(next(iter(proof.expected.values())))
    if not proof.holds_over_all(hop):
        for steady in (proof.steady.all(axis=1), proof.steady.any(axis=1)):
            if steady.any():
                rows = _spaced(np.flatnonzero(steady).tolist(), REFERENCE_BATCHES)
                return rows, proof.steady[rows]
        raise GateError(
            "Every sample holds a near-tie that fell the other way, so nothing is left to verify "
            "the bundle with.",
            fix="Give more samples with --inputs, or another --seed.",
        )
    every, wanted = list(range(count)), REFERENCE_BATCHES
    while wanted < count and not proof.holds_on(hop, found, _spaced(every, wanted)):
        wanted *= 2
    rows = _spaced(every, wanted)
    return rows, np.ones_like(proof.steady[rows])


def _spaced(rows: list[int], count: int) -> list[int]:
    """Returns ``count`` of some rows, evenly spaced from the first on; all where there are less."""
    if count >= len(rows):
        return rows
    return [rows[index * len(rows) // count] for index in range(count)]
