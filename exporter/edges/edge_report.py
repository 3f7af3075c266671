"""Reports what inputs at the edges showed of a model, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokexport.exporter.edges.edge_int8 import Int8Figures


@dataclass(frozen=True)
class EdgeReport:
    """The inputs beside the samples on which the artifact was compared.

    Attributes:
        stage: The stage that was compared with eager there: the artifact, or in int8 the last in
            fp32.
        held: The kinds on which it was compared with eager, and passed.
        tied: On how many samples of a kind a near-tie was crossed, and the stage was compared by a
            replay, by kind.
        weak: What makes the proof on a kind weaker than it looks, by kind.
        unstable: The kinds on which rounding alone moves every output so far that nothing is
            proven, with how far.
        not_finite: The kinds on which eager itself gives NaN or no answer, with the reason.
        int8: How far the outputs of an artifact in int8 are off there, by output.
        ranges: How far the whole numbers of an input may reach, (lowest, highest) by its name:
            a runner refuses what is beyond.
        beyond: What happens beyond those that are no index of a table, by the input's name.
        parts: Between which ends those numbers of an input are an index that are not all of it,
            which a runner does not hold each to, by the input's name.
        unbounded: How far beyond their tables and types inputs of whole numbers agreed, by name.
        why_not: Why none were tried; '' where some were.
    """

    stage: str = "artifact"
    held: tuple[str, ...] = ()
    tied: Mapping[str, int] = field(default_factory=dict)
    weak: Mapping[str, str] = field(default_factory=dict)
    unstable: Mapping[str, str] = field(default_factory=dict)
    not_finite: Mapping[str, str] = field(default_factory=dict)
    int8: Mapping[str, Int8Figures] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    beyond: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    unbounded: Mapping[str, int] = field(default_factory=dict)
    why_not: str = ""

    def lines(self) -> Iterator[str]:
        """Yields the findings, a clause each."""
        if self.why_not:
            yield f"none: {self.why_not}"
        elif not (self.held or self.ranges or self.unbounded):
            yield "none: its inputs have no others that it answers"
        if self.held:
            in_fp32 = f", in fp32 ('{self.stage}')" if self.int8 else ""
            yield f"held to {', '.join(self.held)}{in_fp32}"
        if self.tied:
            kinds = (f"{kind} ({n} sample{'s' * (n != 1)})" for kind, n in self.tied.items())
            yield f"replayed with eager's decisions, for near-ties: on {', '.join(kinds)}"
        yield from _by_reason("little is proven on", self.weak)
        yield from _by_reason("nothing is proven on", self.unstable)
        yield from _by_reason("not to", self.not_finite)
        yield from self._int8_lines()
        for name, (low, high) in self.ranges.items():
            if name not in self.beyond:
                yield f"{name} is an index from {low} to {high}, and a runner refuses others"
        for name, ends in self.parts.items():
            said = " or ".join(f"from {low} to {high}" for low, high in ends)
            yield f"a part of {name} is an index {said}, and no runner holds it to that by itself"
        for name, most in self.unbounded.items():
            other = "other " * (name in self.parts)
            yield f"{other}whole numbers of {name} agree up to {most}"

    def _int8_lines(self) -> Iterator[str]:
        """Yields what was proven of an artifact in int8, and what was not."""
        if not self.int8:
            return
        read = ", and to read its inputs" * any(one.error is not None for one in self.int8.values())
        yield f"the artifact in int8 is held to be finite there where eager is{read}"
        for name, one in self.int8.items():
            if one.not_asked:
                yield f"in int8 '{name}' is not held to read its inputs: it {one.not_asked}"
            if one.error is not None:
                yield f"in int8 '{name}' is off by {one.error:.2f} of its spread on ordinary values"
            if one.outside:
                by = ", ".join(f"{share:.0%} on {kind}" for kind, share in one.outside.items())
                yield f"in int8 '{name}' answers otherwise at the ends, off by {by}"

    def warnings(self) -> tuple[str, ...]:
        """Returns warnings on whole numbers that a runner refuses."""
        return tuple(
            f"Whole numbers of '{name}' work from {low} to {high} only, and a runner refuses "
            f"others: {self.beyond[name]}."
            for name, (low, high) in self.ranges.items()
            if name in self.beyond
        )


def _by_reason(what: str, kinds: Mapping[str, str]) -> Iterator[str]:
    """Yields a clause for every reason, with the kinds that have it."""
    for reason in dict.fromkeys(kinds.values()):
        some = ", ".join(kind for kind, own in kinds.items() if own == reason)
        yield f"{what} {some}: {reason.rstrip('.')}"
