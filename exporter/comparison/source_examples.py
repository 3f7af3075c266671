"""Gives a source the inputs of what it is compared with, where it has no examples of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from tokexport.exporter.eager.flat_model import forward_parameters
from tokexport.exporter.source import Source
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import Manifest, TensorSpec
from tokexport.runtimes.pictures.preprocessing import Preprocessing


def as_compiled(source: Source, manifest: Manifest, arrays: Mapping[str, Array]) -> Source:
    """Returns a source with the examples, or the preprocessing, that a bundle needs of it.

    Args:
        source: The source, as it was read.
        manifest: The bundle.
        arrays: A batch of the bundle's inputs, by name.

    Raises:
        PreprocessingError: The steps in the manifest are not valid.
    """
    left = manifest.preprocessing or {}
    if left.get("embedded") is None:
        return with_examples(source, manifest.inputs, arrays)
    steps = Preprocessing.from_json(left).whole
    source = replace(source, preprocessing=source.preprocessing or steps)
    if source.example_args is not None or source.example_kwargs or source.input_shapes:
        return source
    return replace(source, example_args=(torch.zeros(1, 3, *steps.size),))


def with_examples(
    source: Source, inputs: Sequence[TensorSpec], arrays: Mapping[str, Array] | None = None
) -> Source:
    """Returns a source with examples of the shapes and types of some inputs.

    It stays as it is where it has examples, or where ``forward`` does not take inputs of these
    names.

    Args:
        source: The source.
        inputs: What the other side takes; every size has to be known.
        arrays: Values by name; zeros without them.
    """
    if source.example_args is not None or source.example_kwargs:
        return source
    if not {spec.name for spec in inputs} <= {*forward_parameters(source.model)}:
        return source
    values = arrays or {spec.name: np.zeros(spec.shape, spec.dtype) for spec in inputs}
    examples = {spec.name: torch.from_numpy(values[spec.name].copy()) for spec in inputs}
    return replace(source, example_kwargs=examples)
