"""Makes a source of a module in memory, with example inputs in any of the usual forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tokexport.exporter.errors import UsageError
from tokexport.exporter.source.hashing import hash_model
from tokexport.exporter.source.input_shapes import known_input_shapes
from tokexport.exporter.source.options import Source
from tokexport.exporter.source.preprocessing import timm_preprocessing


def source_in_memory(model: nn.Module, example_inputs: Any) -> Source:
    """Returns the source of a live module.

    Args:
        model: The module.
        example_inputs: A tensor, a tuple or list of arguments, a dict by the names of ``forward``,
            or None where the model says its shape, or a shape is given otherwise.

    Raises:
        UsageError: The model is no module.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"The model is a {type(model).__name__}, not a torch.nn.Module.",
            fix="Pass the module itself, or a Source made by tokexport.exporter.source.",
        )
    args, kwargs = split_arguments(example_inputs)
    name = type(model).__qualname__
    return Source(
        model=model,
        example_args=args,
        example_kwargs=kwargs,
        kind="module",
        location=name,
        sha256=hash_model(model, name),
        preprocessing=timm_preprocessing(model),
        input_shapes=known_input_shapes(model) if example_inputs is None else None,
    )


def split_arguments(example_inputs: Any) -> tuple[tuple[Any, ...] | None, dict[str, Any]]:
    """Returns positional and named arguments; None where there are no positional ones.

    Raises:
        UsageError: They are none of a tensor, a tuple or list, and a dict.
    """
    if example_inputs is None:
        return None, {}
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return None, dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    raise UsageError(
        f"The example inputs are a {type(example_inputs).__name__}.",
        fix="Pass a tensor, a tuple of the arguments of forward, or a dict of them by name.",
    )
