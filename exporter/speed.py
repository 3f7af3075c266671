"""Times an artifact against the model in eager PyTorch at its best."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from tokexport.exporter.benchmark import Speed, measure
from tokexport.exporter.capture import FlatModel
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.inputs import Batches
from tokexport.exporter.machine import usable_cores
from tokexport.exporter.module_state import evaluation
from tokexport.exporter.reference import tensors_of
from tokexport.runtimes.base import Runner

#: How long the timing may take; a slow model gets fewer pairs.
SPEED_SECONDS = 10.0
#: How long choosing the number of threads of eager may take.
TRIAL_SECONDS = 5.0


def time_against_eager(
    flat: FlatModel, runner: Runner, batches: Batches, config: CompileConfig
) -> Speed:
    """Times the artifact against the model in eager, interleaved, on the first batch.

    Eager runs with the number of threads that suits it best here, all or one: beside another
    runtime's threads, or on a busy machine, one is often faster by far.
    """
    batch = next(iter(batches))
    tensors = tensors_of(batch)
    threads = torch.get_num_threads()

    def eager(count: int) -> Callable[[], object]:
        def run() -> None:
            torch.set_num_threads(count)
            flat(*tensors)

        return run

    forms = {
        f"eager, {count} thread{'s' * (count > 1)}": eager(count) for count in sorted({1, threads})
    }
    with evaluation(flat), torch.no_grad():
        try:
            baseline = _fastest(forms, config.seed)
            return measure(
                {baseline: forms[baseline], timed_name(config): lambda: runner.run(batch)},
                baseline=baseline,
                time_limit_s=SPEED_SECONDS,
                seed=config.seed,
            )
        finally:
            torch.set_num_threads(threads)


def timed_name(config: CompileConfig) -> str:
    """Returns what the artifact is called among the timings."""
    return f"{config.target} {config.precision}"


def _fastest(forms: dict[str, Callable[[], object]], seed: int) -> str:
    """Returns the form with the shortest run in a few interleaved rounds."""
    if len(forms) == 1:
        return next(iter(forms))
    first = next(iter(forms))
    trial = measure(
        forms, baseline=first, pairs=5, warm_up=1, time_limit_s=TRIAL_SECONDS, seed=seed
    )
    return min(trial.timings, key=lambda form: trial.timings[form].median_ms)


def busy_warning() -> tuple[str, ...]:
    """Says so when other programs wanted the processor while it was timed."""
    load, cores = os.getloadavg()[0], usable_cores()
    if load <= 1.5 * cores:
        return ()
    return (f"The machine is busy (load {load:.1f} on {cores} cores): the speed says little.",)
