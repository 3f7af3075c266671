"""Times a compiled model beside its alternatives.

For each batch size every candidate is prepared, its outputs are compared with eager, and all that
can run take turns in interleaved rounds of one process: eager, ``torch.compile`` where asked for,
the plain export, that export optimised, the model compiled here, the unreduced model by both, and
the products with weights alone.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace

import torch
from rich.console import Console

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.bench.candidate import Candidate, Entrant, Way
from tokexport.exporter.bench.config import ENOUGH_ROUNDS, BenchConfig
from tokexport.exporter.bench.entrants import Entrants
from tokexport.exporter.bench.results import Bench, Measurement, rows_of
from tokexport.exporter.bench.subject import Subject
from tokexport.exporter.errors import UsageError
from tokexport.exporter.progress import Checklist
from tokexport.exporter.recipe import parse_recipe, restoring
from tokexport.exporter.reduction.reduced_source import reduced_source
from tokexport.exporter.source import Source
from tokexport.exporter.speed.busy_machine import busy_warning
from tokexport.exporter.speed.interleaved import Speed, measure
from tokexport.exporter.system.machine import describe_machine
from tokexport.exporter.system.process_state import process_unchanged
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.graph_passes.ops import ops
from tokexport.runtimes.native_library import FIX as KERNELS_FIX
from tokexport.runtimes.native_library import require_loaded


@process_unchanged()
def bench(
    source: Source,
    config: BenchConfig,
    *,
    unreduced: Source | None = None,
    progress: Checklist | None = None,
) -> Bench:
    """Measures a model beside its alternatives.

    A candidate that cannot run is a row with the reason; one that differs from eager is a row that
    says by how much.

    Args:
        source: The model; it is left as it was.
        config: What to measure. With ``reduce`` that is put into the model first, and the model as
            given is the unreduced one.
        unreduced: The unreduced model of one that reduces its tokens by itself.
        progress: Shows what is at work; silent without one.

    Raises:
        UsageError: The options or inputs do not fit, or there are two unreduced models.
        ModelNotSupportedError: The model fails in eager, has no one answer, or cannot be reduced.
        tokexport.graph_passes.reduction.errors.SurgeryError: Its blocks cannot be taken apart.
        GateError: The surgery alone already changes what the model computes.
    """
    if unreduced is not None and config.reduce is not None:
        raise UsageError(
            "--unreduced names the model without its reduction, and with --reduce that is the "
            "source itself.",
            fix="Leave one of them out.",
        )
    recipe = ""
    if config.reduce is not None:
        parsed = parse_recipe(config.reduce)
        recipe = (restoring(parsed) if config.restore else parsed).text
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    lost = _lost_kernels(config)
    ops.register()
    with checklist:
        measurements = tuple(
            _measured(source, unreduced, replace(config, batch=batch), checklist)
            for batch in config.batches
        )
    known = unreduced or (source if config.reduce is not None else None)
    return Bench(
        source=source.location,
        reduction=recipe,
        unreduced="" if known is None else known.location,
        targets=config.targets,
        precisions=config.precisions,
        measurements=measurements,
        machine=describe_machine({"torch": config.threads or torch.get_num_threads()}),
        warnings=(*lost, *busy_warning(), *_few_rounds(measurements)),
    )


def _lost_kernels(config: BenchConfig) -> tuple[str, ...]:
    """Says which native kernels do not load, or refuses to time without them."""
    found = [BACKENDS[target].kernels() for target in config.targets]
    for kernels in found:
        require_loaded(kernels, asked=config.require_kernels)
    return tuple(
        f"{kernels.problem} It was timed without them. {KERNELS_FIX}"
        for kernels in found
        if kernels.problem
    )


def _measured(
    source: Source, unreduced: Source | None, config: BenchConfig, checklist: Checklist
) -> Measurement:
    """Measures one batch size."""
    if config.reduce is not None:
        with checklist.stage("reduce"):
            source, unreduced = reduced_source(source, config, checklist.counted).source, source
    with checklist.stage("reference"):
        model = Subject(source, config, checklist.counted)
        facts = model.read_graph()
        without, unreduced_macs = None, None
        if unreduced is not None:
            without = Subject(unreduced, config, checklist.counted)
            _same_inputs(model, without)
            unreduced_macs = without.count()
    measurement = Measurement(
        batch=config.batch or 1,
        inputs=model.batches.origin,
        rows=(),
        rounds=0,
        time_limited=False,
        macs=facts.macs,
        unreduced_macs=unreduced_macs,
        floor_products=len(facts.products),
        floor_macs=sum(product.macs for product in facts.products),
        load=(os.getloadavg()[0], 0.0),
    )
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        folder = stack.enter_context(scratch_folder())
        entrants = Entrants(config, folder, stack, checklist).all(model, without, facts)
        with checklist.stage(f"rounds, batch {measurement.batch}"):
            speed = _timed(entrants, config)
    return replace(
        measurement,
        rows=rows_of(entrants, speed, measurement.macs_ratio, config.seed),
        rounds=0 if speed is None else speed.pairs,
        time_limited=speed is not None and speed.time_limited,
        load=(measurement.load[0], os.getloadavg()[0]),
    )


def _timed(entrants: list[Entrant], config: BenchConfig) -> Speed | None:
    """Runs the rounds of all candidates that can run; None if only eager can."""
    ready = {one.candidate.name: one.run for one in entrants if one.run is not None}
    if len(ready) < 2:
        return None
    return measure(
        ready,
        baseline=Candidate(Way.EAGER).name,
        pairs=config.rounds,
        time_limit_s=config.time_limit_s,
        seed=config.seed,
    )


def _same_inputs(model: Subject, unreduced: Subject) -> None:
    """Refuses an unreduced model that takes other inputs: it would be another task."""
    one, other = ([(s.shape, s.dtype) for s in each.specs] for each in (model, unreduced))
    if one != other:
        raise UsageError(
            "The unreduced model takes other inputs than the model.",
            where=f"The model {'; '.join(map(str, model.specs))}; the unreduced one "
            f"{'; '.join(map(str, unreduced.specs))}.",
            fix="Name the same model without its reduction with --unreduced.",
        )


def _few_rounds(measurements: tuple[Measurement, ...]) -> tuple[str, ...]:
    return tuple(
        f"Batch {one.batch} was measured in {one.rounds} rounds, and {ENOUGH_ROUNDS} are wanted: "
        "take the ratios with care."
        for one in measurements
        if one.rounds < ENOUGH_ROUNDS
    )
