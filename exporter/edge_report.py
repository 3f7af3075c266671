"""What inputs at the edges told of a model, as data; without torch, as reports are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EdgeReport:
    """Which inputs the artifact was held to beside the samples.

    Attributes:
        held: The kinds on which it was held to eager, and passed.
        not_finite: The kinds on which eager itself gives NaN or no answer, with the reason.
        ranges: How far the whole numbers of an input may reach, (lowest, highest) by its name:
            beyond, the artifact answers otherwise than eager, and a runner refuses them.
        unbounded: How far beyond their tables and types inputs of whole numbers agreed, by name.
        why_not: Why none were tried; '' where some were.
    """

    held: tuple[str, ...] = ()
    not_finite: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    unbounded: Mapping[str, int] = field(default_factory=dict)
    why_not: str = ""

    def lines(self) -> Iterator[str]:
        """Yields what a person should know, a clause each."""
        if self.why_not:
            yield f"none: {self.why_not}"
        elif not self.held:
            yield "none: its inputs have no others that it answers"
        if self.held:
            yield f"held to {', '.join(self.held)}"
        for kind, reason in self.not_finite.items():
            yield f"not to {kind}: {reason}"
        for name, most in self.unbounded.items():
            yield f"whole numbers of {name} agree up to {most}"

    def warnings(self) -> tuple[str, ...]:
        """Says beyond what the artifact answers otherwise."""
        return tuple(
            f"The artifact agrees with eager on whole numbers of '{name}' from {low} to {high} "
            "only: a runner refuses others."
            for name, (low, high) in self.ranges.items()
        )
