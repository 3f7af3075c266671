"""Measures the speed-up and the cost of a reduction for several values of one option.

For each value the reduced model is proven and built as ``compile`` does, and then timed against
the model as given, which is compiled once for the same runtime, in interleaved rounds.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from tokexport.exporter.compile import compile
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.eager.example_inputs import prepare
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.reference import run_reference
from tokexport.exporter.errors import UsageError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.inspection.inspect import macs_by_kind
from tokexport.exporter.parity.hits import accuracy
from tokexport.exporter.progress import Checklist
from tokexport.exporter.recipe import Recipe, parse_recipe, with_option
from tokexport.exporter.reduction.agreement import Agreement
from tokexport.exporter.reduction.reduced_source import ReducedSource, reduced_source
from tokexport.exporter.reduction.reduction_report import ReductionReport
from tokexport.exporter.report.block_parts import cost
from tokexport.exporter.source import RANDOM_WEIGHTS, Source
from tokexport.exporter.speed.busy_machine import busy_warning
from tokexport.exporter.speed.interleaved import Ratio, Speed, measure
from tokexport.exporter.speed.time_limits import time_limits
from tokexport.exporter.sweep.pareto import Standing, Trade, front
from tokexport.exporter.system.machine import Machine, describe_machine
from tokexport.exporter.system.process_state import process_unchanged
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.graph_passes.reduction.method import Method
from tokexport.runtimes.bundle.manifest import RuntimeInfo
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.cores.free_cores import allowed_cores
from tokexport.runtimes.loading import load
from tokexport.runtimes.signatures import held_to

UNREDUCED: Final = "unreduced"
ACCURACY, TOP1, COSINE = "accuracy", "top-1 agreement", "cosine"


@dataclass(frozen=True)
class Point:
    """One value of the option.

    Attributes:
        value: The value.
        reduction: What was put in, and its agreement with the unreduced model.
        macs_ratio: Multiply-accumulates over those of the unreduced model, normalisations left out.
        speed: The rounds, the unreduced model compiled for the same runtime as baseline.
        quality: What the front compares beside the speed, as ``Sweep.quality`` says.
        standing: Whether it is on the front: ``on`` where no other point beats it whatever the
            speeds within their intervals are, ``off`` where one does, ``open`` where they overlap.
    """

    value: Any
    reduction: ReductionReport
    macs_ratio: float
    speed: Speed
    quality: float
    standing: Standing = Standing.OPEN

    @property
    def ratio(self) -> Ratio:
        """How many times as fast as the unreduced model it is."""
        (found,) = self.speed.ratios.values()
        return found

    @property
    def agreement(self) -> Agreement | None:
        """The agreement of the first output."""
        return next(iter(self.reduction.agreement.values()), None)


@dataclass(frozen=True)
class Sweep:
    """The speed and the quality of a reduction at several values of one option.

    Attributes:
        source: The model.
        target: ``ort``, ``openvino`` or ``trt``.
        precision: The precision that all run in.
        method: The method.
        option: The option whose values were tried.
        inputs: Where the inputs come from, a clause.
        samples: How many there were.
        quality: What the front compares beside the speed: ``accuracy`` where there are labels, else
            ``top-1 agreement``, else ``cosine``.
        unreduced_quality: That of the unreduced model.
        unreduced_standing: Whether the unreduced model is on the front.
        random_inputs: Whether the inputs are synthetic.
        random_weights: Whether the source said that its weights are random.
        points: A point per value, in the order given.
        runtime: What they ran in.
        machine: The description of the machine.
        warnings: What the user should know.
    """

    source: str
    target: str
    precision: str
    method: str
    option: str
    inputs: str
    samples: int
    quality: str
    unreduced_quality: float
    unreduced_standing: Standing
    random_inputs: bool
    random_weights: bool
    points: tuple[Point, ...]
    runtime: RuntimeInfo | None
    machine: Machine
    warnings: tuple[str, ...]


@process_unchanged()
def sweep(
    source: Source,
    recipe: str | Path | Method | Recipe,
    values: Sequence[Any],
    config: CompileConfig,
    *,
    option: str | None = None,
    progress: Checklist | None = None,
) -> Sweep:
    """Measures a reduction at several values of one option.

    Args:
        source: The model, as it was read; it is left as it was.
        recipe: The method, and the options that stay.
        values: The values.
        config: The target, precision and inputs; ``output`` and what gates a compile play no part.
        option: The option; the method's main one without it.
        progress: Shows the stages; silent without one.

    Raises:
        UsageError: A value or the inputs do not fit.
        ModelNotSupportedError: The model cannot be reduced, or cannot become a static graph.
        tokexport.graph_passes.reduction.errors.SurgeryError: Its blocks cannot be taken apart.
        GateError: A compile failed its gate, or the target cannot run here.
        tokexport.runtimes.errors.RuntimesError: The target's runtime is missing or failed.
    """
    base = parse_recipe(recipe)
    option = option or base.method.strength
    if not values:
        raise UsageError("There are no values to sweep.", fix="Pass --values 4,8,12,16.")
    recipes = [with_option(base, option, value) for value in values]
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    with checklist, scratch_folder() as folder, held_to(None):  # bundles of its own
        return _Sweeping(source, config, checklist, folder).over(recipes, option, values)


class _Sweeping:
    """Runs the sweep of one model in a temporary folder."""

    def __init__(
        self, source: Source, config: CompileConfig, checklist: Checklist, folder: Path
    ) -> None:
        self._source, self._config, self._checklist = source, config, checklist
        self._folder = folder
        self._flat, _, batches = prepare(source, config)
        self._batches = replace(batches, watch=checklist.counted)
        self._runtime: RuntimeInfo | None = None

    def over(self, recipes: Sequence[Recipe], option: str, values: Sequence[Any]) -> Sweep:
        with self._checklist.stage("reduce"):
            reduced = [self._reduced(recipe) for recipe in recipes]
            outputs = run_reference(self._flat, self._batches).outputs
            macs = cost(macs_by_kind(self._flat, self._batches))
        with self._checklist.stage(UNREDUCED):
            bundle = self._compiled(self._source, UNREDUCED)
        points = []
        with load(bundle, threads=self._config.threads or allowed_cores()) as runner:
            for value, recipe, one in zip(values, recipes, reduced, strict=True):
                with self._checklist.stage(recipe.text):
                    points.append(self._point(value, one, outputs, macs, runner))
        quality, best = _quality_of(points, outputs, self._batches)
        points = [replace(point, quality=_quality(point, quality)) for point in points]
        standings = front(
            [Trade(1.0, 1.0, best), *(Trade(*p.ratio.interval, p.quality) for p in points)]
        )
        return Sweep(
            source=self._source.location,
            target=self._config.target,
            precision=self._config.precision,
            method=recipes[0].method.name,
            option=option,
            inputs=self._batches.origin,
            samples=self._batches.samples,
            quality=quality,
            unreduced_quality=best,
            unreduced_standing=standings[0],
            random_inputs=self._config.inputs is None,
            random_weights=RANDOM_WEIGHTS in self._source.notes,
            points=tuple(
                replace(p, standing=one) for p, one in zip(points, standings[1:], strict=True)
            ),
            runtime=self._runtime,
            machine=describe_machine({"torch": self._config.threads or torch.get_num_threads()}),
            warnings=(*_shortened(points), *busy_warning()),
        )

    def _reduced(self, recipe: Recipe) -> ReducedSource:
        config = replace(self._config, reduce=recipe)
        return reduced_source(self._source, config, self._checklist.counted)

    def _point(
        self,
        value: Any,
        reduced: ReducedSource,
        unreduced: Mapping[str, Any],
        macs: int,
        baseline: Runner,
    ) -> Point:
        flat = FlatModel(reduced.source.model, self._flat.spec)
        use = reduced.use.compared(
            unreduced, run_reference(flat, self._batches).outputs, self._batches
        )
        share = cost(macs_by_kind(flat, self._batches)) / macs
        bundle = self._compiled(reduced.source, "reduced")
        threads = self._config.threads
        batch = next(iter(self._batches))
        with load(bundle, threads=threads or allowed_cores()) as runner:
            self._runtime = runner.runtime
            speed = measure(
                {UNREDUCED: lambda: baseline.run(batch), use.recipe: lambda: runner.run(batch)},
                baseline=UNREDUCED,
                time_limit_s=time_limits().rounds_s,
                seed=self._config.seed,
            )
        shutil.rmtree(bundle)
        return Point(value, use, share, speed, quality=0.0)

    def _compiled(self, source: Source, name: str) -> Path:
        config = self._config
        return compile(
            source,
            target=config.target,
            output=self._folder / name,
            inputs=config.inputs,
            preprocess=config.preprocess,
            labels=config.labels,
            samples=config.samples,
            input_shape=config.input_shape,
            batch=config.batch,
            seed=config.seed,
            precision=config.precision,
            threads=config.threads,
            constants=config.constants,
            quantization=config.quantization,
            weight_bits=config.weight_bits,
            require_run=True,
            timed=False,
            page=False,
        ).bundle


def _shortened(points: Sequence[Point]) -> tuple[str, ...]:
    """Returns the warning on outputs with fewer tokens, of the first value that has any."""
    return next((p.reduction.warnings for p in points if p.reduction.warnings), ())


def _quality_of(
    points: Sequence[Point], unreduced: Mapping[str, Any], batches: Batches
) -> tuple[str, float]:
    """Returns the quality that the front compares, and that of the unreduced model."""
    if batches.labels is not None:
        return ACCURACY, accuracy(next(iter(unreduced.values())), batches.labels)
    found = [point.agreement for point in points]
    if any(one is None for one in found):
        raise UsageError(
            "The reduced model's first output has another shape than the unreduced model's, so "
            "their agreement cannot be measured.",
            fix="Put the tokens back with restore=true in the recipe.",
        )
    return (TOP1 if all(one is not None and one.top1 is not None for one in found) else COSINE), 1.0


def _quality(point: Point, name: str) -> float:
    if name == ACCURACY:
        assert point.reduction.accuracy_reduced is not None
        return point.reduction.accuracy_reduced
    assert point.agreement is not None
    if name == TOP1:
        assert point.agreement.top1 is not None
        return point.agreement.top1
    return point.agreement.cosine
