"""Measures bundles, each configuration in a new process."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.bench_bundle.config import BundleBenchConfig
from tokexport.exporter.bench_bundle.probe import Job, Loaded, Probe
from tokexport.exporter.bench_bundle.results import (
    BenchedBundle,
    BundleBench,
    BundleRow,
    drift_of,
    latency_of,
)
from tokexport.exporter.errors import UsageError
from tokexport.exporter.json_values import plain
from tokexport.exporter.progress import Checklist
from tokexport.exporter.speed.busy_machine import busy_warning, drift_note
from tokexport.exporter.speed.interleaved import MIN_PAIRS, ratios
from tokexport.exporter.speed.time_limits import time_limits
from tokexport.exporter.system.machine import describe_machine
from tokexport.exporter.typed_json import typed
from tokexport.exporter.worker.messages import Message, error_from, read_message, write_message
from tokexport.exporter.worker.process import RUN_SECONDS, VARIABLE, python_path, time_limit
from tokexport.runtimes.bundle.manifest import Manifest
from tokexport.runtimes.errors import RunError
from tokexport.runtimes.memory import FIX, lacks_memory
from tokexport.runtimes.processor import usable_cores
from tokexport.runtimes.signatures import trusted_manifest

#: How many runs a percentile of 99 takes.
_ENOUGH_RUNS: Final = 100
#: How much of what native code prints an error shows, in characters.
_SHOWN: Final = 300


def bench_bundles(config: BundleBenchConfig, progress: Checklist | None = None) -> BundleBench:
    """Measures one bundle, or two in turns, on this machine, for each batch and thread count.

    Args:
        config: The bundles, and how long they are run.
        progress: Shows what is done; silent without one.

    Raises:
        UsageError: Two bundles take different inputs.
        RunError: The process of a measurement died, or did not end.
        tokexport.runtimes.errors.RuntimesError: A bundle is altered, or cannot run here.
    """
    manifests = [trusted_manifest(bundle) for bundle in config.bundles]
    counts = _thread_counts(config, manifests)
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    rows: list[BundleRow] = []
    probes: list[Probe] = []
    batches, left_out = _batches(config, manifests)
    with checklist:
        for batch, count in itertools.product(batches, counts):
            with checklist.stage(_said(batch, count)):
                alone, found = _configuration(config, batch, count)
                probes = alone
                rows += _rows(config, batch, count, alone, found)
    return BundleBench(
        bundles=tuple(
            _described(bundle, manifest, probe)
            for bundle, manifest, probe in zip(config.bundles, manifests, probes, strict=True)
        ),
        inputs=found.inputs,
        rows=tuple(rows),
        machine=describe_machine(),
        warnings=(*left_out, *_warnings(rows), *busy_warning()),
    )


def _thread_counts(
    config: BundleBenchConfig, manifests: Sequence[Manifest]
) -> tuple[int | None, ...]:
    """Returns the numbers of threads to measure; None alone where no bundle runs on the CPU."""
    targets = [BACKENDS.get(one.target) for one in manifests]
    if not any(one is None or one.runs_on_cpu for one in targets):
        return (None,)
    return config.threads or tuple(sorted({1, usable_cores()}))


def _batches(
    config: BundleBenchConfig, manifests: Sequence[Manifest]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Returns the batches that all bundles have an artifact for, and what is left out.

    Raises:
        UsageError: There is no artifact for a batch that was asked for, or no batch in common.
    """
    ladders = [[one.batch for one in manifest.ladder] for manifest in manifests]
    shared = [batch for batch in ladders[0] if all(batch in ladder for ladder in ladders)]
    for batch in config.batches:
        if batch not in shared:
            raise UsageError(
                f"There is no artifact for {batch} samples.",
                where="; ".join(
                    f"{bundle}: {', '.join(map(str, ladder))}"
                    for bundle, ladder in zip(config.bundles, ladders, strict=True)
                ),
                fix="Pass --batches with some that all bundles have.",
            )
    if not shared:
        raise UsageError(
            "The two bundles take different inputs: no number of samples is common to both.",
            where=f"{ladders[0]} and {ladders[1]} samples",
            fix="Compare bundles that were compiled with the same --batch.",
        )
    others = sorted({batch for ladder in ladders for batch in ladder} - {*shared})
    said = f"Only one of the bundles has an artifact for {', '.join(map(str, others))} samples."
    return config.batches or tuple(shared), (said,) if others else ()


def _said(batch: int, threads: int | None) -> str:
    """Returns what a configuration is called in the checklist."""
    samples = f"{batch} sample{'s' * (batch != 1)}"
    return samples if threads is None else f"{samples}, {threads} thread{'s' * (threads != 1)}"


def _configuration(
    config: BundleBenchConfig, batch: int, threads: int | None
) -> tuple[list[Probe], Probe]:
    """Returns the probes of each bundle alone, and the one whose times count."""
    bundles = tuple(map(str, config.bundles))
    whole = Job(
        bundles=bundles,
        batch=batch,
        threads=threads,
        rounds=config.rounds,
        seconds=config.seconds,
        pause_s=time_limits().pause_s,
        require_kernels=config.require_kernels,
    )
    if len(bundles) == 1:
        found = in_own_process(whole)
        return [found], found
    few = dataclasses.replace(whole, rounds=min(config.rounds, MIN_PAIRS))
    alone = [in_own_process(dataclasses.replace(few, bundles=(one,))) for one in bundles]
    return alone, in_own_process(whole)


def _rows(
    config: BundleBenchConfig, batch: int, asked: int | None, alone: Sequence[Probe], found: Probe
) -> list[BundleRow]:
    times = {str(at): np.asarray(one) for at, one in enumerate(found.times_ms)}
    over = ratios(times, "0") if len(times) == 2 else {}
    names = ("the first bundle", "the second bundle") if len(times) == 2 else ("the bundle",)
    rows = []
    for at, (bundle, own, times_ms) in enumerate(
        zip(config.bundles, alone, found.times_ms, strict=True)
    ):
        (loaded,) = own.loaded
        latency = latency_of(times_ms)
        rows.append(
            BundleRow(
                bundle=str(bundle),
                batch=batch,
                threads=loaded.threads,
                import_ms=loaded.import_ms,
                load_ms=loaded.load_ms,
                first_run_ms=loaded.first_run_ms,
                latency=latency,
                samples_per_s=batch / latency.mean_ms * 1e3,
                memory=own.memory,
                conditions=dataclasses.replace(found.conditions, drift=drift_of(times_ms)),
                ratio=over.get(str(at)),
                time_limited=found.time_limited,
                notes=(*_given(asked, loaded), *found.notes, *drift_note(times_ms, names[at])),
            )
        )
    return rows


def _given(asked: int | None, loaded: Loaded) -> tuple[str, ...]:
    """Returns a sentence where a runtime took another number of threads than it was asked for."""
    if asked == loaded.threads:
        return ()
    if loaded.threads is None:
        return (f"{loaded.flavour} runs on no threads of its own: {asked} were asked for.",)
    return (f"{loaded.flavour} took {loaded.threads} threads, and {asked} were asked for.",)


def _described(bundle: Path, manifest: Manifest, probe: Probe) -> BenchedBundle:
    (loaded,) = probe.loaded
    return BenchedBundle(
        bundle=str(bundle),
        target=manifest.target,
        precision=manifest.precision,
        flavour=loaded.flavour,
        version=loaded.version,
        kernels=loaded.kernels,
        bundle_bytes=sum(one.stat().st_size for one in bundle.rglob("*") if one.is_file()),
    )


def _warnings(rows: Sequence[BundleRow]) -> tuple[str, ...]:
    """Returns what the figures do not say by themselves."""
    cores = usable_cores()
    said = []
    if (most := max(row.threads or 0 for row in rows)) > cores:
        said.append(f"There are {most} threads on {cores} cores: they wait for one another.")
    if (fewest := min(row.latency.runs for row in rows)) < _ENOUGH_RUNS:
        said.append(
            f"A measurement has {fewest} runs: its 99th percentile is near its longest run. Raise "
            "--time-limit or --rounds."
        )
    return tuple(said)


def in_own_process(job: Job) -> Probe:
    """Measures a job in a new process.

    Raises:
        RunError: The process cannot be started, died, or did not end.
        Exception: What the job raised.
    """
    limit_s = time_limit(RUN_SECONDS) + job.seconds
    program = [sys.executable, "-P", *(["-B"] if sys.dont_write_bytecode else [])]
    program += ["-m", "tokexport.exporter.bench_bundle.probe", str(os.getpid())]
    with tempfile.TemporaryFile() as printed:
        try:
            process = subprocess.Popen(
                program,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": python_path()},
                start_new_session=True,
            )
        except OSError as error:
            raise RunError(
                f"The process of a measurement cannot be started: {error}.",
                where=sys.executable,
                fix="Start tokexport with a Python interpreter that can import it.",
            ) from error
        answer = _answer(process, job, limit_s)
        if answer is None:
            printed.seek(0)
            raise _died(process.returncode, limit_s, printed.read().decode(errors="replace"))
    if "error" in answer.fields:
        raise error_from(answer.fields["error"])
    return typed(Probe, answer.fields)


def _answer(process: subprocess.Popen[bytes], job: Job, limit_s: float) -> Message | None:
    """Returns what a process answers; None where it ended before, or was ended at the limit."""
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(limit_s, process.kill)
    timer.daemon = True
    timer.start()
    with process:
        try:
            fields: dict[str, Any] = plain(job)
            write_message(process.stdin.fileno(), Message(fields))
            return read_message(process.stdout.fileno())
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):  # its pipes are closed: it is ending
                process.wait(timeout=10)
            return None
        finally:
            timer.cancel()
            process.kill()  # it has answered, or it is not wanted any more


def _died(code: int, limit_s: float, printed: str) -> RunError:
    """Returns the error of a process that did not answer."""
    said = " ".join(printed.split())[-_SHOWN:]
    where = f"The last that it printed: {said}" if said else ""
    if lacks_memory(printed):
        return RunError("There is too little memory to run the bundle.", where=where, fix=FIX)
    ended = f"exit code {code}"
    if code < 0:
        number = -code
        known = {int(one): one.name for one in signal.Signals}
        ended = f"signal {known.get(number, number)}"
    return RunError(
        f"The process of a measurement ended by {ended} before it answered.",
        where=where,
        fix=f"Free memory, or allow more than {limit_s:.0f} s by {VARIABLE}; `tokexport verify` "
        "runs the bundle once.",
    )
