"""Measures bundles in a process of their own: ``python -m … PARENT`` reads a job, writes a probe.

A new process for each configuration keeps the memory, the load and the first run of one from those
of another.
"""

from __future__ import annotations

import sys
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.bench_bundle.results import Conditions, MemoryUse
from tokexport.exporter.json_values import plain
from tokexport.exporter.speed.busy_machine import clock_note, use_notes
from tokexport.exporter.speed.interleaved import run_rounds
from tokexport.exporter.speed.paired_bundles import NEW, OLD, shared_inputs
from tokexport.exporter.system.process_memory import forget_peak, peak_bytes, resident_bytes
from tokexport.exporter.typed_json import typed
from tokexport.exporter.worker.messages import Message, described, read_message, write_message
from tokexport.exporter.worker.own_process import (
    be_the_first_to_go,
    end_with,
    leave_no_core,
    pipes,
)
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.cores.free_cores import allowed_cores
from tokexport.runtimes.cores.processor_use import (
    hottest_celsius,
    read_processor,
    use_between,
)
from tokexport.runtimes.loading import load
from tokexport.runtimes.native_library import KernelsWarning
from tokexport.runtimes.signatures import trusted_manifest
from tokexport.runtimes.verification import reference_inputs

_NAMES: Final = (OLD, NEW)


@dataclass(frozen=True)
class Job:
    """What a probe is to measure.

    Attributes:
        bundles: The folder of a bundle, or of two that are run in turns.
        batch: Which artifact is measured, by how many samples it takes at once.
        threads: How many threads a runtime gets; None leaves it to the runtime.
        rounds: The most runs of each.
        seconds: After how many seconds no further round is begun.
        pause_s: The pause before each run of two.
        require_kernels: Whether to fail where native kernels do not load.
    """

    bundles: tuple[str, ...]
    batch: int
    threads: int | None
    rounds: int
    seconds: float
    pause_s: float
    require_kernels: bool


@dataclass(frozen=True)
class Loaded:
    """A bundle that was loaded and run once.

    Attributes:
        flavour: What ran it.
        version: The version of that.
        kernels: The instruction set of its native kernels; '' where the runtime has none.
        threads: How many threads it has; None where the runtime does not say.
        import_ms: How long the import of the runtime took.
        load_ms: How long loading took.
        first_run_ms: How long the first run took.
    """

    flavour: str
    version: str
    kernels: str
    threads: int | None
    import_ms: float
    load_ms: float
    first_run_ms: float


@dataclass(frozen=True)
class Probe:
    """What a process measured.

    Attributes:
        loaded: The bundles.
        times_ms: The times of the runs of each, in their order.
        time_limited: Whether the time limit ended the runs.
        inputs: Where the inputs come from, a clause.
        memory: The memory that all bundles of the process take.
        conditions: What the processor did meanwhile; ``drift`` is known later.
        notes: What disturbed the runs, a sentence each.
    """

    loaded: tuple[Loaded, ...]
    times_ms: tuple[tuple[float, ...], ...]
    time_limited: bool
    inputs: str
    memory: MemoryUse
    conditions: Conditions
    notes: tuple[str, ...]


def measure_here(job: Job) -> Probe:
    """Loads the bundles of a job in this process, runs them, and returns what was measured.

    Raises:
        UsageError: Two bundles take different inputs.
        tokexport.runtimes.errors.RuntimesError: A bundle is altered, or cannot run here.
    """
    folders = {name: Path(bundle) for name, bundle in zip(_NAMES, job.bundles, strict=False)}
    # one bundle's own inputs are read first, so that they count for no bundle's memory
    alone = {
        name: _first_batch(folder, job.batch)
        for name, folder in folders.items()
        if len(folders) == 1
    }
    forget_peak()
    before = resident_bytes()
    with ExitStack() as stack, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", KernelsWarning)
        opened = {name: _opened(folder, job) for name, folder in folders.items()}
        runners = {name: stack.enter_context(one[0]) for name, one in opened.items()}
        held = resident_bytes()
        feeds, origin = alone, f"the first batch of the reference inputs of {job.bundles[0]}"
        if len(folders) == 2:
            feeds, origin = shared_inputs(folders, runners, job.batch)
        loaded = []
        for name, (runner, import_ms, load_ms) in opened.items():
            start = time.perf_counter()
            runner.run(feeds[name])
            loaded.append(_loaded(runner, import_ms, load_ms, _ms_since(start)))
        processor, heat = read_processor(), hottest_celsius()
        rounds = run_rounds(
            {name: runner.bound(feeds[name]) for name, runner in runners.items()},
            pairs=job.rounds,
            time_limit_s=job.seconds,
            settle_s=job.pause_s if len(runners) == 2 else 0.0,
        )
        after, heat_after = read_processor(), hottest_celsius()
        most = peak_bytes()
    clocks = processor.megahertz, after.megahertz
    return Probe(
        loaded=tuple(loaded),
        times_ms=tuple(tuple(map(float, rounds.times_ms[name])) for name in folders),
        time_limited=rounds.time_limited,
        inputs=origin,
        memory=MemoryUse(_more(held, before), _more(most, before)),
        conditions=Conditions(*clocks, heat, heat_after, None),
        notes=(
            *(str(one.message) for one in said if issubclass(one.category, KernelsWarning)),
            *use_notes(use_between(processor, after)),
            *clock_note([one for one in clocks if one is not None]),
        ),
    )


def _first_batch(bundle: Path, batch: int) -> dict[str, Array]:
    return {name: array[0] for name, array in reference_inputs(bundle, batch).items()}


def _opened(bundle: Path, job: Job) -> tuple[Runner, float, float]:
    """Returns the runner, how long the import of its runtime took, and how long loading did."""
    manifest = trusted_manifest(bundle)
    backend = BACKENDS.get(manifest.target)
    start = time.perf_counter()
    if backend is not None:
        backend.import_runtime()
    import_ms, start = _ms_since(start), time.perf_counter()
    runner = load(
        bundle,
        threads=job.threads or allowed_cores(),
        require_kernels=job.require_kernels,
        batches=(job.batch,),
    )
    return runner, import_ms, _ms_since(start)


def _loaded(runner: Runner, import_ms: float, load_ms: float, first_run_ms: float) -> Loaded:
    details = runner.runtime.details
    threads = details.get("threads")
    return Loaded(
        flavour=runner.runtime.flavour,
        version=runner.runtime.version,
        kernels=str(details.get("kernels", "")),
        threads=threads if isinstance(threads, int) else None,
        import_ms=import_ms,
        load_ms=load_ms,
        first_run_ms=first_run_ms,
    )


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3


def _more(found: int | None, before: int | None) -> int | None:
    return None if found is None or before is None else max(0, found - before)


def main(parent: int) -> None:
    """Reads one job from stdin, and writes what was measured, or the error, to what was stdout.

    Args:
        parent: The process that asks.
    """
    end_with(parent)
    leave_no_core()
    be_the_first_to_go()
    questions, answers = pipes()
    job = typed(Job, read_message(questions).fields)
    try:
        answer = Message(plain(measure_here(job)))
    except Exception as error:
        answer = Message({"error": described(error)})
    write_message(answers, answer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
