"""Turns the outcome of a check into one of pytest: a pass, a warning or a failure."""

from __future__ import annotations

import warnings

from tokexport.exporter.lock.check import UNCHANGED, BundleCheck


class ParityDriftWarning(UserWarning):
    """A bundle is inside its tolerance, and outside its lock."""


class ParityBreak(AssertionError):
    """A bundle is not what was locked."""


def judge(found: BundleCheck, strict: bool) -> None:
    """Warns of a drift, and fails for a break.

    Args:
        found: How a bundle stands to its lock.
        strict: Whether a drift fails too.

    Raises:
        ParityBreak: It fails.
    """
    if found.fails(strict):
        raise ParityBreak(found.sentences())
    if found.outcome != UNCHANGED:
        warnings.warn(f"{found.name}\n{found.sentences()}", ParityDriftWarning, stacklevel=2)
