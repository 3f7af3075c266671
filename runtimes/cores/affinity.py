"""Keeps the threads of a runtime on some cores."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from tokexport.runtimes.errors import RunError


@contextmanager
def on_cores(cores: Collection[int] | None) -> Iterator[None]:
    """Keeps the threads that are started meanwhile on some cores, and this thread as long as it is.

    Args:
        cores: Their numbers; None leaves everything as it is.

    Raises:
        RunError: The system keeps no threads on cores, or does not have these for this process.
    """
    if cores is None:
        yield
        return
    before = keep_on(cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def keep_on(cores: Collection[int]) -> set[int]:
    """Keeps this thread on some cores; returns those that it was on.

    Raises:
        RunError: The system keeps no threads on cores, or does not have these for this process.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise RunError(
            "This system does not keep threads on cores.",
            fix="Leave cores out, and choose a number of threads.",
        )
    before = os.sched_getaffinity(0)
    wanted = sorted(cores)
    try:
        os.sched_setaffinity(0, wanted)
        if os.sched_getaffinity(0) == set(wanted):
            return before
        os.sched_setaffinity(0, before)
    except (OSError, ValueError, OverflowError, TypeError):
        pass
    raise RunError(
        f"This process cannot run on the cores {', '.join(map(str, wanted)) or '(none)'}.",
        where=f"It may use {', '.join(map(str, sorted(before)))}.",
        fix="Pass some of these as cores.",
    )
