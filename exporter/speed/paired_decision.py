"""Decides from blocks of interleaved rounds whether one program is slower than another.

A block is a number of rounds of both, loaded anew for it: what a load decides by chance (where
memory lies, which core a thread gets) is then drawn anew too, and a difference between blocks
shows it (Mytkowicz et al., "Producing wrong data without doing anything obviously wrong", ASPLOS
2009; Kalibera & Jones, "Rigorous benchmarking in reasonable time", ISMM 2013). What hits
neighbouring rounds alike, as a busy neighbour for seconds, stays within a block. A block gives one
number, the interquartile mean of its log ratios, in which two rounds of opposite order count as
one: that cancels who went first, and a drift in a straight line.

The interval over blocks holds at every look (``confidence_sequence``), so blocks are added until it
lies on one side of the allowed ratio. It is widened by a part of what the process could not have of
the cores: the rounds show how a neighbour scatters the times, and not that it hits one program
harder than the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import exp, isfinite, log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokexport.exporter.speed.confidence_sequence import interval_at_every_look

#: How far a ratio may be off by a neighbour that takes all of the cores' time, as a logarithm: two
#: programs that slow down together, one of them by a tenth more. A judgement, not a measurement.
NEIGHBOUR_BIAS: Final = 0.1


class Verdict(StrEnum):
    """Names what rounds say of the new program."""

    SLOWER = "slower"
    NOT_SLOWER = "not slower"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Block:
    """What a block of rounds gave.

    Attributes:
        log_ratio: The logarithm of new ÷ old.
        old_ms: The median time of a run of the old program.
        new_ms: That of the new one.
        pairs: How many rounds it has.
        withheld: The share of the rounds' time in which the process waited for a core, or was kept
            from it by a hypervisor or a quota, 0 to 1.
    """

    log_ratio: float
    old_ms: float = 0.0
    new_ms: float = 0.0
    pairs: int = 0
    withheld: float = 0.0


@dataclass(frozen=True)
class RoundSet:
    """A series of blocks that was looked at after each of them.

    Attributes:
        verdict: What it says by itself.
        ratio: How many times as long as the old program the new one takes.
        low: The lower end of the 95 % interval of ``ratio``; None where the blocks are too few.
        high: Its upper end.
        widened: By which factor each end lies farther out for what was withheld of the cores.
        blocks: The blocks, in order.
    """

    verdict: Verdict
    ratio: float
    low: float | None
    high: float | None
    widened: float
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Decision:
    """What one or two sets of rounds say together.

    Attributes:
        verdict: The answer.
        sets: The first set, and where that says ``slower`` the one that was to confirm it.
        why: Why it is undecided, a sentence; '' where it is not.
    """

    verdict: Verdict
    sets: tuple[RoundSet, ...]
    why: str = ""


def log_ratio(old_ms: NDArray[np.float64], new_ms: NDArray[np.float64]) -> float:
    """Returns the interquartile mean of the log ratios of a block's rounds.

    Args:
        old_ms: The times of the old program, (rounds,), the first of it and the other in turns.
        new_ms: Those of the new one, (rounds,). An odd round at the end is left out.
    """
    rounds = np.log(new_ms / old_ms)
    units = np.sort(rounds[: len(rounds) // 2 * 2].reshape(-1, 2).mean(axis=1))
    quarter = len(units) // 4
    return float(units[quarter : len(units) - quarter].mean())


def round_set(blocks: Sequence[Block], slower: float) -> RoundSet:
    """Returns what blocks say, however often they were looked at before.

    Args:
        blocks: The blocks so far, at least one.
        slower: How much slower the new program may be, as a share.
    """
    found = interval_at_every_look(np.array([one.log_ratio for one in blocks]))
    bias = NEIGHBOUR_BIAS * float(np.mean([one.withheld for one in blocks]))
    low, high = found.mean - found.half_width - bias, found.mean + found.half_width + bias
    verdict = Verdict.UNDECIDED
    if low > log(1 + slower):
        verdict = Verdict.SLOWER
    elif high < log(1 + slower):
        verdict = Verdict.NOT_SLOWER
    known = isfinite(found.half_width)
    return RoundSet(
        verdict=verdict,
        ratio=exp(found.mean),
        low=exp(low) if known else None,
        high=exp(high) if known else None,
        widened=exp(bias),
        blocks=tuple(blocks),
    )


def decide(draw: Callable[[], Block], slower: float, has_time: Callable[[], bool]) -> Decision:
    """Draws blocks until they say whether the new program is slower, or the time is up.

    ``slower`` takes two sets of blocks that say it, one after the other, the second without a look
    at the first; ``not slower`` takes one.

    Args:
        draw: Runs a block.
        slower: How much slower the new program may be, as a share: 0.03.
        has_time: Says whether another block may begin; the first one does in any case.
    """
    first = _series(draw, slower, has_time)
    if first.verdict is Verdict.NOT_SLOWER:
        return Decision(Verdict.NOT_SLOWER, (first,))
    if first.verdict is Verdict.UNDECIDED:
        return Decision(Verdict.UNDECIDED, (first,), _open_interval(first, slower))
    unconfirmed = "The first set of rounds says slower, and the time ended before a second one"
    if not has_time():
        return Decision(Verdict.UNDECIDED, (first,), f"{unconfirmed} began.")
    second = _series(draw, slower, has_time)
    why = {
        Verdict.SLOWER: "",
        Verdict.NOT_SLOWER: "Two sets of rounds contradict one another: the first says slower, the "
        "second not slower.",
        Verdict.UNDECIDED: f"{unconfirmed} confirmed it.",
    }[second.verdict]
    return Decision(Verdict.UNDECIDED if why else Verdict.SLOWER, (first, second), why)


def _series(draw: Callable[[], Block], slower: float, has_time: Callable[[], bool]) -> RoundSet:
    """Draws a block, and adds others until they decide or the time is up."""
    blocks = [draw()]
    while True:
        found = round_set(blocks, slower)
        if found.verdict is not Verdict.UNDECIDED or not has_time():
            return found
        blocks.append(draw())


def _open_interval(found: RoundSet, slower: float) -> str:
    """Says why a set is undecided."""
    count = len(found.blocks)
    if found.low is None or found.high is None:
        return f"The time was enough for {count} block{'s' * (count > 1)} of rounds, too few."
    return (
        f"The time ended while the interval from {found.low:.3f} to {found.high:.3f} still held "
        f"{1 + slower:g}."
    )
