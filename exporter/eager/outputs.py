"""Splits the result of a model into named tensors and constants, always in one order.

Two results in eager are the same if each of their tensors is, up to rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tokexport.exporter.errors import (
    DataDependentError,
    EmptyOutputError,
    ModelNotSupportedError,
)
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import within_local_floor

#: What a model may return beside tensors; it becomes a constant of the manifest.
Constant = bool | int | float | str | None


def flatten(result: Any) -> tuple[dict[str, Tensor], dict[str, Constant]]:
    """Returns the tensors and the constants in a model's result, by name.

    A single tensor is ``output``; the parts of tuples and lists are numbered from 0, those of
    dicts, dataclasses and named tuples keep their keys: ``{"logits": a, "features": [b, c]}`` gives
    ``logits``, ``features_0``, ``features_1``. None is left out.
    """
    tensors: dict[str, Tensor] = {}
    constants: dict[str, Constant] = {}
    for name, leaf in _leaves(result, ""):
        name = name or "output"
        if name in tensors or name in constants:
            raise ModelNotSupportedError(
                f"Two outputs of the model would be called '{name}'.",
                fix="Rename a key, so that parts joined by '_' differ.",
            )
        if isinstance(leaf, Tensor):
            tensors[name] = leaf
        else:
            if isinstance(leaf, float) and not math.isfinite(leaf):
                raise ModelNotSupportedError(
                    f"The model returns {leaf} as '{name}', which no manifest can hold.",
                    fix="Leave it out, or return it as a tensor.",
                )
            constants[name] = leaf
    if not tensors:
        raise ModelNotSupportedError(
            "The model returns no tensor.",
            where=f"It returned {type(result).__name__}.",
            fix="Return the logits or features from forward.",
        )
    return tensors, constants


def refuse_empty(outputs: Mapping[str, Tensor]) -> None:
    """Refuses an output that holds no number: nothing can be proven of it.

    Raises:
        EmptyOutputError: An output is empty.
    """
    for name, tensor in outputs.items():
        if not tensor.numel():
            raise EmptyOutputError(
                f"The model returns '{name}' without a number in it: its shape is "
                f"{tuple(tensor.shape)}.",
                fix="Leave it out of what forward returns.",
            )


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if value is None:
        return
    if isinstance(value, Tensor | bool | int | float | str):
        yield name, value
        return
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        raise DataDependentError(
            "The model returns a number that the values of the input decide.",
            where=f"At output '{name}'.",
            fix="Return it as a tensor: torch.tensor(number).",
        )
    parts = _parts(value)
    if parts is None:
        raise ModelNotSupportedError(
            f"The model returns a {type(value).__name__}, which is neither a tensor, a number, nor "
            "a tuple, list, dict or dataclass of these.",
            where=f"At output '{name}'." if name else "",
            fix="Return tensors, or wrap the model in a module that takes them out.",
        )
    for key, part in parts:
        yield from _leaves(part, f"{name}_{key}" if name else _top_name(value, key))


def _top_name(value: Any, key: str) -> str:
    return f"output_{key}" if key.isdigit() else key


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return [(str(position), part) for position, part in enumerate(value)]
    return None


#: The result of a run: tensors by name, and constants by name.
Answer: TypeAlias = tuple[dict[str, Array], dict[str, Constant]]


def same_answers(first: Answer, second: Answer, share: float) -> bool:
    """Returns whether two runs gave the same, up to the order of summation of threads.

    Args:
        first: One answer.
        second: The other.
        share: How far each value may be off, as a share of the scale of its neighbourhood.
    """
    (one, constants), (other, again) = first, second
    same = constants == again and list(one) == list(other)
    return same and all(_alike(array, other[name], share) for name, array in one.items())


def _alike(one: Array, other: Array, share: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    both = np.isnan(one) & np.isnan(other)  # a reference that holds NaN is refused elsewhere
    one, other = (np.where(both, 0, each) for each in (one, other))
    return within_local_floor(one, other, share)
