"""Says what a machine did beside a timing: other programs, quotas, clocks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from tokexport.runtimes.cores.processor_use import ProcessorUse
from tokexport.runtimes.processor import usable_cores

#: The share of the cores' time from which on it is said who took it.
_SAID_SHARE: Final = 0.02
#: The ratio of two clocks, or of two times of one bundle, from which on a change is said.
_SAID_CHANGE: Final = 1.1


def busy_warning() -> tuple[str, ...]:
    """Returns a warning if other programs used the processor during the timing."""
    load, cores = os.getloadavg()[0], usable_cores()
    if load <= 1.5 * cores:
        return ()
    return (f"The machine is busy (load {load:.1f} on {cores} cores): the speed says little.",)


def use_notes(use: ProcessorUse) -> tuple[str, ...]:
    """Returns a sentence for each thing that kept a timing from its cores."""
    notes = []
    if use.others >= _SAID_SHARE:
        notes.append(f"Other programs took {use.others:.0%} of the cores' time.")
    if use.waiting is not None and use.waiting >= _SAID_SHARE:
        notes.append(
            f"The timed threads waited for a core in {use.waiting:.0%} of the time in which they "
            "were ready to run."
        )
    if use.stolen >= _SAID_SHARE:
        notes.append(f"The hypervisor gave {use.stolen:.0%} of the cores' time to other machines.")
    if use.throttles:
        notes.append(
            f"The processor quota of the container stopped it {use.throttles} times, for "
            f"{use.throttled:.0%} of the cores' time."
        )
    if use.overheated:
        notes.append(f"The cores were slowed down for their heat {use.overheated} times.")
    return tuple(notes)


def clock_note(clocks_mhz: Sequence[float]) -> tuple[str, ...]:
    """Returns a sentence where the clock of the cores changed between readings."""
    if not clocks_mhz or max(clocks_mhz) < _SAID_CHANGE * min(clocks_mhz):
        return ()
    low, high = min(clocks_mhz), max(clocks_mhz)
    return (f"The clock of the cores went from {low:.0f} to {high:.0f} MHz.",)


def thirds(times_ms: Sequence[float]) -> tuple[float, float] | None:
    """Returns the medians of the first and of the last third of times; None of fewer than three.

    Args:
        times_ms: The times of one program in their order.
    """
    third = len(times_ms) // 3
    if not third:
        return None
    first, last = (sorted(part)[third // 2] for part in (times_ms[:third], times_ms[-third:]))
    return first, last


def drift_note(times_ms: Sequence[float], program: str = "the old bundle") -> tuple[str, ...]:
    """Returns a sentence where the times of one program changed from beginning to end.

    Args:
        times_ms: Its times in their order, of runs or medians of blocks of rounds.
        program: What it is called.
    """
    medians = thirds(times_ms)
    if medians is None:
        return ()
    first, last = medians
    if max(first, last) < _SAID_CHANGE * min(first, last):
        return ()
    return (
        f"The times drifted: {program} took {first:.3g} ms in the first third of the rounds "
        f"and {last:.3g} ms in the last.",
    )
