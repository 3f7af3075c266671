"""Times an artifact against the model in eager PyTorch at its best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from tokexport.exporter.config import CompileConfig
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.speed.interleaved import Speed, measure, over
from tokexport.exporter.speed.time_limits import TimeLimits, time_limits
from tokexport.exporter.worker.runner import here
from tokexport.runtimes.bundle.runner import Runner

#: The name of the unreduced eager model among the timings, before its threads.
UNREDUCED = "unreduced eager"


def time_against_eager(
    flat: FlatModel,
    runner: Runner,
    batches: Batches,
    config: CompileConfig,
    unreduced: FlatModel | None = None,
    limits: TimeLimits | None = None,
) -> Speed:
    """Times the artifact against the model in eager, interleaved, on the first batch.

    Eager runs with the number of threads that suits it best here, one or all, or as many as
    ``config.threads`` says: beside another runtime's threads, or on a busy machine, one is often
    faster by far.

    Args:
        flat: The model that was compiled; its eager form is the baseline.
        runner: Runs the artifact.
        batches: The inputs.
        config: What was asked for.
        unreduced: The model without the reduction that was put into it, timed in the same rounds.
        limits: How long it may take; None asks the environment.
    """
    limits = limits or time_limits()
    batch, timed = next(iter(batches)), here(runner)
    before = torch.get_num_threads()
    threads = before if config.threads is None else config.threads
    models = {"eager": flat} | ({} if unreduced is None else {UNREDUCED: unreduced})
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        stack.enter_context(torch.no_grad())
        candidates: dict[str, Callable[[], object]] = {}
        for name, model in models.items():
            stack.enter_context(evaluation(model))
            tensors = tensors_of(batch)
            candidates |= eager_at_its_best(name, model, tensors, threads, config.seed, limits)
        baseline = next(iter(candidates))
        candidates[timed_name(config, runner)] = lambda: timed.run(batch)
        return measure(
            candidates,
            baseline=baseline,
            time_limit_s=limits.rounds_s,
            seed=config.seed,
            settle_s=limits.pause_s,
        )


def over_unreduced(speed: Speed, seed: int) -> Speed | None:
    """Returns the same rounds with the unreduced model as baseline, if it was timed."""
    names = [name for name in speed.timings if name.startswith(f"{UNREDUCED}, ")]
    return over(names[0], speed, seed) if names else None


def timed_name(config: CompileConfig, runner: Runner) -> str:
    """Returns the name of the artifact among the timings, with its number of threads."""
    threads = runner.runtime.details.get("threads")
    threads_note = "" if not isinstance(threads, int) else f", {said_threads(threads)}"
    return f"{config.target} {config.precision}{threads_note}"


def said_threads(count: int) -> str:
    """Returns the number of threads as a text."""
    return f"{count} thread{'s' * (count != 1)}"


def eager_at_its_best(
    name: str,
    model: FlatModel,
    tensors: Sequence[Tensor],
    threads: int,
    seed: int,
    limits: TimeLimits,
) -> dict[str, Callable[[], object]]:
    """Returns a model's run on one thread or on all, whichever is faster in a few rounds.

    The run sets torch's number of threads for the whole process, and leaves it so.

    Args:
        name: What it is called, before its threads.
        model: The model, in evaluation mode and without gradients.
        tensors: Its inputs.
        threads: How many threads all are.
        seed: The seed of the bootstrap.
        limits: How long the rounds may take.
    """
    forms = _eager_forms(name, model, tensors, threads)
    if len(forms) == 1:
        return forms
    first = next(iter(forms))
    trial = measure(
        forms,
        baseline=first,
        pairs=5,
        warm_up=1,
        time_limit_s=limits.eager_threads_s,
        seed=seed,
        settle_s=limits.pause_s,
    )
    fastest = min(trial.timings, key=lambda form: trial.timings[form].median_ms)
    return {fastest: forms[fastest]}


def _eager_forms(
    name: str, model: FlatModel, tensors: Sequence[Tensor], threads: int
) -> dict[str, Callable[[], object]]:
    """Returns a model's run on one thread and on all."""

    def on(count: int) -> Callable[[], object]:
        def run() -> None:
            torch.set_num_threads(count)
            model(*tensors)

        return run

    return {f"{name}, {said_threads(count)}": on(count) for count in sorted({1, threads})}
