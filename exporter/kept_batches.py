"""Chooses the batches that a bundle carries for ``verify``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tokexport.exporter.errors import GateError
from tokexport.exporter.parity import Proof
from tokexport.runtimes.base import Array

#: How many batches the bundle carries; more only where a gate over all does not hold on so few.
REFERENCE_BATCHES: Final = 4


def kept_batches(proof: Proof, found: Mapping[str, Array]) -> list[int]:
    """Returns the batches that ``verify`` replays, in order, evenly from all of them.

    Those on which a near-tie fell differently are left out. A gate that holds over all samples lets
    single ones lie outside, and none is left out for that: the choice grows until it holds.

    Args:
        proof: What the hops were held to.
        found: What the last hop gave, (batches, …) by name.

    Raises:
        GateError: Nothing is left to verify with.
    """
    hop = proof.hops[-1].name
    count = len(next(iter(proof.expected.values())))
    if not proof.holds_over_all(hop):
        steady = [row for row in range(count) if row not in proof.unsteady]
        if not steady:
            raise GateError(
                "Every batch holds a near-tie that fell the other way, so nothing is left to "
                "verify the bundle with.",
                fix="Give more samples with --inputs, or another --seed.",
            )
        return _spaced(steady, REFERENCE_BATCHES)
    rows, wanted = list(range(count)), REFERENCE_BATCHES
    while wanted < count and not proof.holds_on(hop, found, _spaced(rows, wanted)):
        wanted *= 2
    return _spaced(rows, wanted)


def _spaced(rows: list[int], count: int) -> list[int]:
    """Returns ``count`` of some rows, evenly spaced from the first on; all where there are less."""
    if count >= len(rows):
        return rows
    return [rows[index * len(rows) // count] for index in range(count)]
