"""Checks how many threads a runtime is asked to take."""

from __future__ import annotations

from typing import Final

from tokexport.runtimes.errors import RunError

#: The most threads; a runtime starts them all when it loads a model.
MOST_THREADS: Final = 1024


def check_thread_count(threads: int | None) -> None:
    """Refuses a number of threads that no runtime can take; None leaves the choice to it.

    Raises:
        RunError: It is no whole number of 1 to ``MOST_THREADS``.
    """
    if threads is None or is_thread_count(threads):
        return
    raise RunError(
        f"The number of threads is {_shown(threads)}.",
        fix=f"Pass a whole number of 1 to {MOST_THREADS}, or leave it out.",
    )


def is_thread_count(threads: object) -> bool:
    """Returns whether a runtime can take this many threads."""
    return (
        isinstance(threads, int) and not isinstance(threads, bool) and 1 <= threads <= MOST_THREADS
    )


def _shown(threads: object) -> str:
    """Returns it for a message; Python writes no whole number of thousands of digits."""
    if isinstance(threads, int) and abs(threads) >= 10**40:
        return "too large"
    return f"{threads!r:.40}"
