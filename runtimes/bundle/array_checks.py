"""Checks the arrays that a caller gives a runner, before the runtime reads or writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.manifest import TensorSpec
from tokexport.runtimes.errors import InputMismatchError


def require_names(given: object, what: str, specs: tuple[TensorSpec, ...]) -> None:
    """Refuses arrays that have no names.

    Args:
        given: What should be a mapping of arrays by name.
        what: What they are, the beginning of a sentence.
        specs: What they are for.

    Raises:
        InputMismatchError: It is no mapping.
    """
    if not isinstance(given, Mapping):
        names = ", ".join(f"{spec.name!r}: array" for spec in specs)
        raise InputMismatchError(
            f"{what} are a {type(given).__name__}, not arrays by name.",
            fix=f"Pass a dict: {{{names}}}.",
        )


def check_inputs(
    specs: tuple[TensorSpec, ...],
    arrays: Mapping[str, Array],
    ranges: Mapping[str, tuple[int, int]],
    constants: Sequence[ConstantInput] = (),
) -> dict[str, Array]:
    """Checks arrays against the inputs of a model.

    Args:
        specs: The inputs.
        arrays: What is given for them, by name.
        ranges: The lowest and the highest whole number of some of them.
        constants: Inputs that may be left out, or hold one value.

    Returns:
        The arrays in the order of ``specs``, each contiguous in memory, without the constants.

    Raises:
        InputMismatchError: A name is missing or unknown, a shape or dtype is not exactly the
            input's, a floating array holds a NaN, a whole number lies outside its range, or a
            constant has another value.
    """
    names = [spec.name for spec in specs]
    missing = [name for name in names if name not in arrays]
    fixed = {one.name: one for one in constants}
    unknown = [str(name) for name in arrays if name not in names and name not in fixed]
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] * bool(missing)
        parts += [f"unknown {', '.join(unknown)}"] * bool(unknown)
        raise InputMismatchError(
            f"The arrays are not the model's inputs: {'; '.join(parts)}.",
            fix=f"Pass exactly these: {'; '.join(map(str, specs))}."
            + f" Constants, to be left out or given: {'; '.join(map(str, constants))}."
            * bool(constants),
        )
    for name, one in fixed.items():
        if name in arrays:
            spec = TensorSpec(name, one.shape, one.dtype)
            one.require(_check_input(spec, arrays[name]))
    checked = {spec.name: _check_input(spec, arrays[spec.name]) for spec in specs}
    for name, (low, high) in ranges.items():
        _check_range(name, checked[name], low, high)
    return checked


def check_outputs(
    specs: tuple[TensorSpec, ...], out: Mapping[str, Any], inputs: Mapping[str, Array]
) -> None:
    """Checks the arrays that outputs are to be written into.

    Args:
        specs: The outputs.
        out: The arrays, by name.
        inputs: The arrays that are read meanwhile, by name.

    Raises:
        InputMismatchError: They are not exactly the outputs, or one of them cannot be written into
            as it is: its shape, dtype or order in memory differs, it is read-only, or it shares
            memory with another array of the run.
    """
    require_names(out, "The arrays of out", specs)
    wanted = {spec.name: spec for spec in specs}
    if out.keys() != wanted.keys():
        raise InputMismatchError(
            f"The arrays of out are not the model's outputs: {', '.join(map(str, out)) or 'none'}.",
            fix=f"Pass exactly these: {'; '.join(map(str, specs))}.",
        )
    for name, spec in wanted.items():
        array = out[name]
        if not isinstance(array, np.ndarray):
            why = f"is a {type(array).__name__}, not a numpy array"
        elif not spec.fits(array.shape) or array.dtype != np.dtype(spec.dtype):
            why = f"has dtype {array.dtype} and shape {array.shape}"
        elif not (array.flags.c_contiguous and array.flags.writeable and array.flags.aligned):
            why = "is read-only, not contiguous, or not aligned"
        else:
            continue
        raise InputMismatchError(
            f"The array of out for {name} {why}.",
            where=f"Output: {spec}",
            fix=f"Make it by numpy.empty({spec.shape}, {spec.dtype!r}).",
        )
    for name, spec in wanted.items():
        others = [*inputs.items(), *((one, out[one]) for one in out if one != name)]
        for other, array in others:
            if np.may_share_memory(out[name], array):
                raise InputMismatchError(
                    f"The array of out for {name} shares memory with that of {other}.",
                    where=f"Output: {spec}",
                    fix=f"Make it by numpy.empty({spec.shape}, {spec.dtype!r}).",
                )


def _check_range(name: str, array: Array, low: int, high: int) -> None:
    if not array.size or (low <= int(array.min()) and int(array.max()) <= high):
        return
    outside = int(array.min()) if int(array.min()) < low else int(array.max())
    raise InputMismatchError(
        f"Input {name} holds {outside}, and the artifact takes {low} to {high} only.",
        where="Beyond it the model it was compiled from fails, or gives other outputs.",
        fix="Pass numbers within that range. Where the target ends it, ort may reach farther.",
    )


def _check_input(spec: TensorSpec, array: Array) -> Array:
    where = f"Input: {spec}"
    if not isinstance(array, np.ndarray):
        raise InputMismatchError(
            f"Input {spec.name} is a {type(array).__name__}, not a numpy array.",
            where=where,
            fix="Pass a numpy array: for a torch tensor, tensor.numpy().",
        )
    if not array.dtype.isnative:  # as a file of another machine may have it; the numbers are those
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype != np.dtype(spec.dtype):
        raise InputMismatchError(
            f"Input {spec.name} has dtype {array.dtype.name}, and the model takes {spec.dtype}.",
            where=where,
            fix=f"Cast it yourself, if that is right: array.astype({spec.dtype!r}).",
        )
    if not spec.fits(array.shape):
        fix = "The shape is fixed when the model is compiled: reshape or batch the array to it."
        if array.shape == spec.shape[1:]:
            fix = "Add the batch axis: array[None]."
        raise InputMismatchError(
            f"Input {spec.name} has shape {array.shape}, and the model takes {spec.shape}.",
            where=where,
            fix=fix,
        )
    if array.dtype.kind == "f" and np.isnan(array).any():
        place = tuple(int(i) for i in np.argwhere(np.isnan(array))[0])
        raise InputMismatchError(
            f"Input {spec.name} holds NaN, first at {place}.",
            where=where,
            fix="Check what made the array: a model's output on NaN means nothing.",
        )
    # ascontiguousarray would turn a scalar into an array of one element.
    return np.require(array, requirements=("C", "ALIGNED"))
