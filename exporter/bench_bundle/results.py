"""Holds what was measured of bundles as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tokexport.exporter.json_values import plain
from tokexport.exporter.speed.busy_machine import thirds
from tokexport.exporter.speed.interleaved import Ratio
from tokexport.exporter.system.machine import Machine

#: The version of what ``bench`` writes.
SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class Latency:
    """How long the runs took, one after another.

    Attributes:
        runs: How many were timed.
        mean_ms: Their mean, in milliseconds.
        p50_ms: The median.
        p90_ms: The time that 90 % of the runs stayed within.
        p99_ms: The time that 99 % stayed within; of fewer than 100 runs it is near the longest.
        min_ms: The shortest.
        max_ms: The longest.
    """

    runs: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float


@dataclass(frozen=True)
class MemoryUse:
    """The memory that a bundle adds to a process of Python with numpy and its inputs.

    Attributes:
        loaded_bytes: After loading, its runtime's library included; None where the system does not
            say.
        peak_bytes: The most until the last run; None where the system does not say.
    """

    loaded_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True)
class Conditions:
    """What the processor did meanwhile, as far as the system says it.

    Attributes:
        megahertz_before: The mean clock of the usable cores before the runs; None where unknown.
        megahertz_after: Right behind the last one.
        celsius_before: The hottest zone before the runs; None where no zone is shown.
        celsius_after: Right behind the last one.
        drift: The median of the last third of the runs over that of the first: above 1 the bundle
            became slower, as where heat slows a processor down; None of fewer than three runs.
    """

    megahertz_before: float | None
    megahertz_after: float | None
    celsius_before: float | None
    celsius_after: float | None
    drift: float | None


@dataclass(frozen=True)
class BundleRow:
    """One bundle on one number of threads.

    Attributes:
        bundle: Its folder.
        batch: How many samples a run takes.
        threads: How many threads its runtime has; None where it does not say, as on a GPU.
        import_ms: How long the import of the runtime took, in milliseconds.
        load_ms: How long loading the bundle took: its files are hashed, checked and compiled.
        first_run_ms: How long the first run took.
        latency: The runs after it.
        samples_per_s: How many samples a second that makes, one run after another.
        memory: The memory it takes, in a process of its own.
        conditions: What the processor did meanwhile.
        ratio: How many times as fast as the first bundle it is, in interleaved rounds; None for
            that one, and alone.
        time_limited: Whether the time limit ended the runs.
        notes: What disturbed the runs, a sentence each.
    """

    bundle: str
    batch: int
    threads: int | None
    import_ms: float
    load_ms: float
    first_run_ms: float
    latency: Latency
    samples_per_s: float
    memory: MemoryUse
    conditions: Conditions
    ratio: Ratio | None
    time_limited: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchedBundle:
    """A bundle that was measured.

    Attributes:
        bundle: Its folder.
        target: What it was compiled for.
        precision: What it computes in.
        flavour: The runtime that ran it.
        version: The version of that.
        kernels: The instruction set of the native kernels that ran; '' where the runtime has none.
        bundle_bytes: The bytes of its files.
    """

    bundle: str
    target: str
    precision: str
    flavour: str
    version: str
    kernels: str
    bundle_bytes: int


@dataclass(frozen=True)
class BundleBench:
    """The speed and the memory of one bundle or two, on the machine that runs them.

    Attributes:
        bundles: What was measured.
        inputs: Where the inputs come from, a clause.
        rows: A row for each number of threads and bundle.
        machine: The description of the machine.
        host: The name by which that machine was reached; '' for this one.
        warnings: What a reader has to know, a sentence each.
    """

    bundles: tuple[BenchedBundle, ...]
    inputs: str
    rows: tuple[BundleRow, ...]
    machine: Machine
    host: str = ""
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names, with ``schema_version`` before them."""
        return {"schema_version": SCHEMA_VERSION, **plain(self)}


def latency_of(times_ms: Sequence[float]) -> Latency:
    """Returns the mean and the percentiles of times; between two runs they are interpolated.

    Args:
        times_ms: The times, at least one.
    """
    found = np.asarray(times_ms, np.float64)
    p50, p90, p99 = (float(one) for one in np.percentile(found, [50, 90, 99]))
    return Latency(
        runs=len(found),
        mean_ms=float(found.mean()),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        min_ms=float(found.min()),
        max_ms=float(found.max()),
    )


def drift_of(times_ms: Sequence[float]) -> float | None:
    """Returns the median of the last third of times over that of the first."""
    found = thirds(times_ms)
    return None if found is None else found[1] / found[0]
