"""Holds the options of a measurement of bundles, checked once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokexport.exporter.config import check_threads
from tokexport.exporter.errors import UsageError
from tokexport.exporter.speed.time_limits import time_limits
from tokexport.runtimes.bundle.manifest import MANIFEST_NAME

#: The most runs of a configuration; the time limit ends a slow one before.
MOST_RUNS: Final = 1000


@dataclass(frozen=True, kw_only=True)
class BundleBenchConfig:
    """The options of a measurement of bundles.

    Attributes:
        bundles: The folder of a bundle, or of two that are timed in turns.
        threads: How many threads a runtime gets, a measurement each; () takes one and all.
        batches: Which artifacts of the bundles are measured, by how many samples they take at once;
            () takes all.
        rounds: The most runs of a measurement, or with two bundles interleaved rounds.
        time_limit_s: After how many seconds a measurement begins no further run; five are made in
            any case. None takes 10, or what the environment allows.
        require_kernels: Whether to fail where native kernels of a target do not load.
    """

    bundles: tuple[Path, ...]
    threads: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    rounds: int = MOST_RUNS
    time_limit_s: float | None = None
    require_kernels: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot be timed."""
        if len(self.bundles) not in (1, 2):
            raise UsageError(
                f"There are {len(self.bundles)} bundles to time.", fix="Pass one bundle, or two."
            )
        for one in self.threads:
            check_threads(one)
        if len(set(self.threads)) < len(self.threads):
            raise UsageError("A number of threads is given twice.", fix="Pass --threads 1,2,4.")
        if len(set(self.batches)) < len(self.batches):
            raise UsageError("A batch is given twice.", fix="Pass --batches 1,8.")
        if self.rounds < 1:
            raise UsageError(f"--rounds is {self.rounds}.", fix="Pass a number of 1 or more.")
        if self.time_limit_s is not None and not 0 < self.time_limit_s < float("inf"):
            raise UsageError(
                f"--time-limit is {self.time_limit_s}.", fix="Pass a number of seconds above 0."
            )

    @property
    def seconds(self) -> float:
        """After how many seconds a measurement begins no further run."""
        return time_limits().rounds_s if self.time_limit_s is None else self.time_limit_s


def is_bundle(path: Path) -> bool:
    """Returns whether a path is a folder with a manifest."""
    return os.path.lexists(path / MANIFEST_NAME)
