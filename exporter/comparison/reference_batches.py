"""Takes inputs and constants of a bundle for a model that is compared with it; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokexport.exporter.inputs.batches import Batches
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.manifest import TensorSpec, batch_of


def reference_batches(
    arrays: Mapping[str, Array], inputs: Sequence[TensorSpec], bundle: str
) -> Batches:
    """Returns the inputs of a bundle's reference data as batches.

    Args:
        arrays: The inputs, (batches, …) by name.
        inputs: What the model takes, in its order.
        bundle: The folder, for the report.
    """
    names = tuple(spec.name for spec in inputs)
    samples = len(arrays[names[0]]) * batch_of(inputs)
    origin = f"{samples} samples of the reference data of {bundle}"
    return Batches(names, {name: arrays[name] for name in names}, samples, None, origin)


def values_of(constants: Sequence[ConstantInput]) -> dict[str, Any]:
    """Returns the values of fixed inputs as a user gives them: numbers, and arrays of them."""
    arrays = {one.name: one.array for one in constants}
    return {name: array if array.shape else array.item() for name, array in arrays.items()}
