"""Reads which inputs a user fixes, and brings their values to the types of the inputs.

::

    --constant 'grid_thw=[[1,4,4]]' --constant mode    {"grid_thw": [[1, 4, 4]], "mode": None}

The artifact holds the numbers that a model reads from a fixed input, and no longer takes that
input; a runner refuses other values of it.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

import numpy as np

from tokexport.exporter.errors import InputError, UsageError, listed
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.constant_inputs import ConstantInput, shown

#: How many numbers a constant input may hold; more are better kept by the model itself.
LARGEST: Final = 1 << 16
_HOW: Final = "Write it as JSON: --constant 'grid_thw=[[1,4,4]]', --constant flag=true."


def parse_constants(texts: Sequence[str]) -> dict[str, Any]:
    """Reads ``NAME=VALUE``, or ``NAME`` for the value of the example input.

    Returns:
        The value by the input's name; None where it is that of the example.

    Raises:
        UsageError: A value cannot be read, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, given, value = text.partition("=")
        name = name.strip()
        if name in found or not name:
            what = (
                f"--constant names '{name}' twice." if name else f"--constant {text} has no name."
            )
            raise UsageError(what, fix=_HOW)
        found[name] = _parsed(name, value.strip()) if given else None
    return found


def _parsed(name: str, text: str) -> Any:
    for read in (json.loads, ast.literal_eval):  # JSON, or as Python writes it: True, (1, 4, 4)
        try:
            value = read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(value, bool | int | float | list | tuple):
            return value
    raise UsageError(
        f"The value of --constant {name} is {text!r:.60}, no number and no list of numbers.",
        fix=_HOW,
    )


def by_name(given: Mapping[str, Any] | Iterable[str] | str | None) -> dict[str, Any]:
    """Returns the value of each constant input; None where it is that of the example.

    Args:
        given: The values by name, or names alone.

    Raises:
        UsageError: A name is no text.
    """
    if isinstance(given, str):
        given = (given,)
    found = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given or ())
    if not all(isinstance(name, str) for name in found):
        raise UsageError(
            f"The constant inputs are {listed([repr(name) for name in found])}.",
            fix='Pass their names, or values by name: constants={"grid_thw": [[1, 4, 4]]}.',
        )
    return found


def require_known(asked: Iterable[str], inputs: Sequence[str], parameters: Iterable[str]) -> None:
    """Refuses constants that are no tensor inputs, and constants that leave no input.

    Args:
        asked: The names of the constants.
        inputs: The names of the model's inputs.
        parameters: Those of ``forward``'s parameters.

    Raises:
        UsageError: A name is no input's, or all inputs are constants.
    """
    for name in asked:
        if name in inputs:
            continue
        if name in parameters:
            raise UsageError(
                f"--constant names '{name}', which is given no tensor.",
                where=f"The inputs are {listed(inputs)}.",
                fix="An argument that is no tensor is a constant already; one that is not given "
                f"needs a value: --constant {name}=VALUE.",
            )
        near = get_close_matches(name, inputs, 1)
        raise UsageError(
            f"--constant names '{name}', and the model has no input of that name.",
            where=f"The inputs are {listed(inputs)}.",
            fix=f"Did you mean '{near[0]}'?" if near else "Name one of these.",
        )
    if inputs and set(inputs) <= set(asked):
        raise UsageError(
            "Every input is a constant, so there is nothing left to run the model on.",
            fix="Leave one of them out of --constant.",
        )


def fitting(name: str, value: Any, shapes: Sequence[tuple[int, ...]], dtype: str) -> Array:
    """Returns a value in the type of its input.

    Args:
        name: The input.
        value: A number, nested lists of numbers, an array or a tensor.
        shapes: The shapes that it may have.
        dtype: The input's numpy dtype.

    Raises:
        InputError: It is no array of numbers, has another shape, or the type does not hold a number
            of it.
    """
    found = _as_array(name, value)
    if found.shape not in shapes:
        raise InputError(
            f"The value of constant input '{name}' has shape {found.shape}, and the model takes "
            f"{' or '.join(map(str, dict.fromkeys(shapes)))}.",
            where=f"It is {shown(found)}.",
            fix="Give a value of the example input's shape.",
        )
    cast = np.zeros(found.shape, dtype)
    for place, number in np.ndenumerate(found):
        if not _puts(cast, place, number):
            raise InputError(
                f"Constant input '{name}' is {dtype}, which does not hold {number}.",
                where=f"The value is {shown(found)}.",
                fix=f"Give {_KINDS.get(cast.dtype.kind, 'numbers')} that {dtype} has.",
            )
    return cast


def as_given(name: str, value: Any) -> Array:
    """Returns the value of an input that has no example, in the type that PyTorch gives it.

    Args:
        name: The input.
        value: A number, nested lists of numbers, an array or a tensor.

    Raises:
        InputError: It is no array of numbers, or holds one that the type does not have.
    """
    found = _as_array(name, value)
    dtype = "int64"
    if hasattr(value, "dtype"):
        dtype = str(value.dtype).removeprefix("torch.")
    elif any(isinstance(one, float) for one in found.flat):
        dtype = "float32"
    elif all(isinstance(one, bool) for one in found.flat):
        dtype = "bool"
    return fitting(name, value, (found.shape,), dtype)


_KINDS: Final = {"b": "true or false", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}


def _as_array(name: str, value: Any) -> Array:
    """Returns numbers as an array of Python's, which hold each exactly."""
    if hasattr(value, "tolist"):  # an array, or a tensor, also of a type that numpy does not have
        value = value.tolist()
    try:
        shape = np.asarray(value).shape
    except ValueError as error:
        raise InputError(
            f"The value of constant input '{name}' has rows of different lengths.", fix=_HOW
        ) from error
    found = np.array(value, dtype=object)
    if found.shape != shape or not all(isinstance(one, bool | int | float) for one in found.flat):
        raise InputError(
            f"The value of constant input '{name}' is no array of numbers: {str(value):.60}.",
            fix=_HOW,
        )
    return found


def _puts(cast: Array, place: tuple[int, ...], number: float) -> bool:
    """Puts a number into an array; returns whether its type has it, floats up to rounding."""
    try:
        with np.errstate(all="ignore"):
            cast[place] = number
    except (OverflowError, ValueError):
        return False
    if cast.dtype.kind == "f" and isinstance(number, float):
        return bool(np.isfinite(cast[place])) or not np.isfinite(number)
    return bool(cast[place].item() == number)


def described(name: str, value: Array) -> ConstantInput:
    """Returns a constant input as a manifest holds it.

    Raises:
        InputError: It holds NaN or too many numbers, or is of a type that has no constants.
    """
    if value.dtype.kind not in _KINDS:
        raise InputError(
            f"Constant input '{name}' is {value.dtype.name}.",
            fix="Constant inputs are truth values, whole numbers and floats.",
        )
    if value.size > LARGEST:
        raise InputError(
            f"Constant input '{name}' holds {value.size} numbers, and at most {LARGEST} are kept.",
            fix="Register it as a buffer of the model.",
        )
    if value.dtype.kind == "f" and np.isnan(value).any():
        raise InputError(
            f"Constant input '{name}' holds NaN, which no runner takes.", fix="Give numbers."
        )
    return ConstantInput.of(name, value)


def suggested(names: Sequence[str], otherwise: str) -> str:
    """Returns the advice where numbers are read from inputs that might be constants.

    Args:
        names: The inputs.
        otherwise: The advice where they change.
    """
    options = " ".join(f"--constant {name}" for name in names)
    them = "it never changes" if len(names) == 1 else "they never change"
    return (
        f"Pass {options}, if {them}: what is read there is then of the example, or of NAME=VALUE, "
        f"and a runner refuses other values. Otherwise: {otherwise}"
    )
