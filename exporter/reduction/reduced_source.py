"""Puts a recipe into the model of a source: the stage between source and reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from tokexport.exporter.config import ReduceConfig
from tokexport.exporter.eager.example_inputs import prepare
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.reference import run_reference, tensors_of
from tokexport.exporter.errors import InternalError, UsageError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.inputs.samples import Watch, unwatched
from tokexport.exporter.recipe import parse_recipe, restoring
from tokexport.exporter.reduction.reduce import Reduction, reduce_flat
from tokexport.exporter.reduction.reduction_report import ReductionReport
from tokexport.exporter.source import Source
from tokexport.runtimes.arrays import Array


@dataclass(frozen=True)
class ReducedSource:
    """A source with a reduction in its model.

    Attributes:
        source: The source, its model the reduced one.
        unreduced: The model as given, on flat inputs.
        use: What was done.
    """

    source: Source
    unreduced: FlatModel
    use: ReductionReport

    def compared(self, reduced: Mapping[str, Array], batches: Batches) -> ReductionReport:
        """Runs the model as given, and compares the reduced one's outputs (batches, …) with it."""
        unreduced = run_reference(self.unreduced, batches, twice=False).outputs
        return self.use.compared(unreduced, reduced, batches)


def reduced_source(source: Source, config: ReduceConfig, watch: Watch = unwatched) -> ReducedSource:
    """Puts the recipe of a configuration into a copy of a source's model.

    Args:
        source: The model, as it was read.
        config: The recipe, and the inputs.
        watch: Is called for the pictures that are decoded, to show progress.

    Raises:
        UsageError: The recipe or the inputs do not fit.
        ModelNotSupportedError: The model has no blocks that can be taken apart.
        tokexport.graph_passes.reduction.errors.SurgeryError: They cannot, or not for this method,
            or an output would mean something else.
        GateError: The surgery alone already changes what the model computes.
    """
    if config.reduce is None:
        raise InternalError("A model is reduced without a recipe.")
    recipe = parse_recipe(config.reduce)
    recipe = restoring(recipe) if config.restore else recipe
    if recipe.method.needs_training and recipe.weights is None:
        raise UsageError(
            f"Method '{recipe.method.name}' has parameters of its own that only training gives.",
            where=recipe.text,
            fix="Pass weights=FILE with them: train tokexport.reduce(model, …) in Python, and save "
            "its state dict.",
        )
    flat, _, batches = prepare(source, config, watch)
    reduction = reduce_flat(flat, tensors_of(next(iter(batches))), recipe)
    return ReducedSource(dataclasses.replace(source, model=reduction.model), flat, _use(reduction))


def _use(reduction: Reduction) -> ReductionReport:
    method = reduction.recipe.method
    return ReductionReport(
        recipe=reduction.recipe.text,
        method=method.name,
        options={
            option.name: getattr(method, option.name) for option in dataclasses.fields(method)
        },
        blocks=reduction.blocks,
        special_tokens=reduction.special,
        surgery_error=reduction.error,
        tokens=reduction.tokens,
        warnings=tuple(map(str, reduction.shortened)),
    )
