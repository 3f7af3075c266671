"""Holds the results of a benchmark as data, and computes their ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tokexport.exporter.backends.known import REFERENCE
from tokexport.exporter.bench.candidate import Candidate, Entrant, Way
from tokexport.exporter.bench.entrants import plain_precision
from tokexport.exporter.speed.against_eager import said_threads
from tokexport.exporter.speed.interleaved import Ratio, Speed, Timing, over
from tokexport.exporter.system.machine import Machine

#: The note on eager where nothing else can run.
ALONE: Final = "not timed: nothing else can run"


@dataclass(frozen=True)
class Realisation:
    """The share of the saved arithmetic that is saved in time: speed-up ÷ ratio of MACs.

    The speed-up is the ratio of medians of the same rounds; 1 means that the time fell as the
    multiply-accumulates did.

    Attributes:
        over_plain: Over the plain export of the unreduced model, on the same runtime in the same
            precision; None where that was not timed.
        over_ours: Over the unreduced model compiled here, for the same target and precision; None
            where that was not timed.
        noisy: Whether the minima contradict the medians of a speed-up in it.
    """

    over_plain: float | None
    over_ours: float | None
    noisy: bool = False


@dataclass(frozen=True)
class Row:
    """One candidate.

    Attributes:
        name: What it is called.
        candidate: What it is.
        timing: Its times; None where it could not run.
        held_against: The name of the plain export that ``over_plain`` is over; None where that was
            not timed, or is this row.
        over_plain: How many times as fast as that export it is.
        over_floor: Its median over the median of the GEMM floor; None where there is no floor.
        realisation: Of the reduced model's rows on a runtime, where the unreduced model is known.
        error: The largest difference from eager, as a share of an output's scale.
        wrong: Whether it lies outside the gate.
        note: Why it could not run; or its threads, whether its ratio is noisy, what is wrong with
            it, and what else there is to know.
    """

    name: str
    candidate: Candidate
    timing: Timing | None
    held_against: str | None
    over_plain: Ratio | None
    over_floor: float | None
    realisation: Realisation | None
    error: float | None
    wrong: bool
    note: str


@dataclass(frozen=True)
class Measurement:
    """The rounds of one batch size.

    Attributes:
        batch: Samples at once.
        inputs: Where they come from, a clause.
        rows: The candidates, in order.
        rounds: How many interleaved rounds were measured.
        time_limited: Whether the time limit ended them early.
        macs: Multiply-accumulates of a run, normalisations left out; None where the model cannot be
            traced.
        unreduced_macs: Those of the unreduced model; None where that is not known.
        floor_products: How many products the GEMM floor holds.
        floor_macs: Their multiply-accumulates.
        load: The processes that wanted the processor, over a minute, before and after.
    """

    batch: int
    inputs: str
    rows: tuple[Row, ...]
    rounds: int
    time_limited: bool
    macs: int | None
    unreduced_macs: int | None
    floor_products: int
    floor_macs: int
    load: tuple[float, float]

    @property
    def macs_ratio(self) -> float | None:
        """The ratio of the unreduced model's multiply-accumulates to the model's."""
        if self.macs is None or self.unreduced_macs is None:
            return None
        return self.unreduced_macs / self.macs


@dataclass(frozen=True)
class Bench:
    """The times of a model and of its alternatives.

    Attributes:
        source: The model.
        reduction: The recipe that was put into it; '' where none was.
        unreduced: What the unreduced model was read from; '' where it is not known.
        targets: What was compiled for.
        precisions: In which precisions.
        measurements: One for each batch size.
        machine: The description of the machine.
        warnings: What the user should know.
    """

    source: str
    reduction: str
    unreduced: str
    targets: tuple[str, ...]
    precisions: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    machine: Machine
    warnings: tuple[str, ...]


def realisation(speed_up: float, macs_ratio: float) -> float:
    """Returns the measured speed-up over the unreduced model ÷ its ratio of MACs."""
    return speed_up / macs_ratio


def rows_of(
    entrants: Sequence[Entrant], speed: Speed | None, macs_ratio: float | None, seed: int
) -> tuple[Row, ...]:
    """Returns a row for every candidate.

    Args:
        entrants: The candidates, those that could not run too.
        speed: The rounds of all that could, by their names; None where nothing was timed.
        macs_ratio: MACs of the unreduced model over those of the model; None where not known.
        seed: The seed of the bootstrap.
    """
    rounds = _Rounds(speed, seed)
    return tuple(_row(entrant, rounds, macs_ratio) for entrant in entrants)


class _Rounds:
    """The same rounds, compared with the candidate that is asked for."""

    def __init__(self, speed: Speed | None, seed: int) -> None:
        self._speed, self._seed = speed, seed
        self._over: dict[str, dict[str, Ratio]] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing was timed."""
        return self._speed is None

    def timing(self, name: str) -> Timing | None:
        return None if self._speed is None else self._speed.timings.get(name)

    def ratio(self, name: str, baseline: str) -> Ratio | None:
        """Returns how many times as fast as the baseline a candidate is, where both were timed."""
        if self.timing(name) is None or self.timing(baseline) is None or name == baseline:
            return None
        assert self._speed is not None
        if baseline not in self._over:
            self._over[baseline] = over(baseline, self._speed, self._seed).ratios
        return self._over[baseline][name]


def _row(entrant: Entrant, rounds: _Rounds, macs_ratio: float | None) -> Row:
    candidate, name = entrant.candidate, entrant.candidate.name
    plain = _plain_of(candidate).name
    over_plain = rounds.ratio(name, plain)
    floor = rounds.ratio(name, Candidate(Way.FLOOR, "ort").name)
    realised = _realisation(candidate, rounds, macs_ratio)
    noisy = any(one is not None and one.noisy for one in (over_plain, floor, realised))
    return Row(
        name=name,
        candidate=candidate,
        timing=rounds.timing(name),
        held_against=None if over_plain is None else plain,
        over_plain=over_plain,
        over_floor=None if floor is None else 1 / floor.of_medians,
        realisation=realised,
        error=entrant.error,
        wrong=entrant.wrong,
        note=ALONE if entrant.run is not None and rounds.empty else _note(entrant, noisy),
    )


def _note(entrant: Entrant, noisy: bool) -> str:
    """Joins the notes on a row: its threads, and whether one of its ratios is noisy."""
    parts = [entrant.note] if entrant.note else []
    if entrant.threads is not None:
        parts.append(said_threads(entrant.threads))
    if noisy:
        parts.append("noisy")
    return "; ".join(parts)


def _plain_of(candidate: Candidate) -> Candidate:
    """Returns the plain export that a candidate is compared with."""
    target = candidate.target or REFERENCE.name
    return Candidate(Way.PLAIN, target, plain_precision(target, candidate.precision))


def _realisation(
    candidate: Candidate, rounds: _Rounds, macs_ratio: float | None
) -> Realisation | None:
    reduced = candidate.target and not candidate.unreduced and candidate.way is not Way.FLOOR
    if macs_ratio is None or not reduced:
        return None

    def over_unreduced(way: Way) -> Ratio | None:
        unreduced = candidate.same(way, candidate.precision, unreduced=True)
        return rounds.ratio(candidate.name, unreduced.name)

    ratios = [over_unreduced(way) for way in (Way.PLAIN, Way.OURS)]
    if ratios == [None, None]:
        return None
    shares = [None if one is None else realisation(one.of_medians, macs_ratio) for one in ratios]
    noisy = any(one is not None and one.noisy for one in ratios)
    return Realisation(shares[0], shares[1], noisy)
