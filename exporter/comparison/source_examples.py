"""Gives a source the inputs of what it is compared with, where it has no examples of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from tokexport.exporter.eager.flat_model import forward_parameters
from tokexport.exporter.source import Source
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import TensorSpec


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
