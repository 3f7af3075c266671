"""What a cap on data-dependent token counts left out, as data; without torch, as reports are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A choice of rows that was padded.

    Attributes:
        line: The line of the person's code, or ''.
        room: How many rows it has room for.
        largest: The most rows that a batch chose there, of those that fit until then.
    """

    line: str
    room: int
    largest: int


@dataclass(frozen=True)
class TokenCapUse:
    """How the samples fit under ``--token-cap``.

    Attributes:
        cap: The cap.
        places: The choices that were padded, in order.
        batches: How many batches there were.
        exceeding: How many of them chose more rows than there is room for; they prove nothing.
    """

    cap: int
    places: tuple[Place, ...]
    batches: int
    exceeding: int

    @property
    def needed(self) -> int:
        """The cap that all batches need, as far as those tell that exceeded it."""
        return max(place.largest for place in self.places)

    def lines(self) -> Iterator[str]:
        """Yields a clause for every place that some batch reached without losing rows."""
        for place in self.places:
            if place.largest:
                yield f"{place.largest} of {place.room} at {place.line or 'an unknown line'}"

    def warnings(self) -> tuple[str, ...]:
        """Says what the artifact answers wrongly, and what was left out of the proof."""
        if not self.exceeding:
            return ()
        return (
            f"{self.exceeding} of {self.batches} batches choose more than --token-cap {self.cap} "
            f"rows, up to {self.needed}: they are not part of the proof, and the artifact answers "
            "otherwise on them.",
        )
