"""Reports what a cap on data-dependent token counts left out, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokexport.runtimes.bundle.input_checks import InputCheck


@dataclass(frozen=True)
class Place:
    """A choice of rows that was padded.

    Attributes:
        line: The line of the user's code, or ''.
        room: How many rows it has room for.
        largest: The most rows that a batch chose there, of those that fit until then.
        least: The least rows that a batch chose there, of those.
        refuses_none: Whether the artifact refuses an input that chooses no row there: no sample
            proves that it answers that input as the model does.
    """

    line: str
    room: int
    largest: int
    least: int
    refuses_none: bool


@dataclass(frozen=True)
class TokenCapReport:
    """How the samples fit under ``--token-cap``.

    Attributes:
        caps: The caps.
        places: The choices that were padded, in order.
        batches: How many batches there were.
        exceeding: How many of them chose more rows than there is room for; they prove nothing.
        left_out: How many are no part of the proof, those included.
        held: What else is assumed, and how many batches break it.
    """

    caps: tuple[int, ...]
    places: tuple[Place, ...]
    batches: int
    exceeding: int
    left_out: int
    held: tuple[tuple[InputCheck, int], ...]

    @property
    def text(self) -> str:
        """The caps as they are passed to ``--token-cap``."""
        return ",".join(map(str, self.caps))

    @property
    def needed(self) -> int:
        """The smallest cap that the batches show to be needed; later choices may need more."""
        return max((place.largest for place in self.places), default=0)

    def lines(self) -> Iterator[str]:
        """Yields a clause for every place, and one for every other assumption."""
        for place in self.places:
            if place.largest or not place.refuses_none:
                counts = f"{place.largest} of {place.room}"
                if place.least < place.largest:
                    counts = f"{place.least} to {counts}"
                none = (
                    ", none is refused" if place.refuses_none else ", none too" * (not place.least)
                )
                yield f"{counts} at {place.line or 'an unknown line'}{none}"
        for check, _ in self.held:
            if check.kind != "none":
                yield f"refused where {check}"

    def broken(self) -> Iterator[str]:
        """Yields the assumptions that batches break, and how many break each."""
        for check, batches in self.held:
            if batches:
                yield f"{batches} of {self.batches} batches: {check}"

    def warnings(self) -> tuple[str, ...]:
        """Returns warnings on what the artifact refuses and the proof leaves out."""
        found = []
        if self.exceeding:
            found.append(
                f"{self.exceeding} of {self.batches} batches choose more than --token-cap "
                f"{self.text} rows, up to {self.needed}: they are not part of the proof, and a "
                "runner refuses them."
            )
        found += [
            f"{line}. They are not part of the proof, and a runner refuses them."
            for line in self.broken()
        ]
        return tuple(found)
