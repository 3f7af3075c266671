"""Reads the arrays of an ``.npz`` or ``.npy`` file, by the names of a model's inputs.

Nothing runs that came with a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from tokexport.exporter.errors import InputError, listed
from tokexport.exporter.inputs.kinds import Kind, kind_of_inputs
from tokexport.runtimes.bundle.constant_inputs import ConstantInput, shown
from tokexport.runtimes.bundle.manifest import TensorSpec
from tokexport.runtimes.files.array_archive import Archive, ArchiveError, read_npy
from tokexport.runtimes.files.regular_files import open_regular

_HOW = "Save the arrays with numpy.savez(path, name=array)"


def read_arrays(path: Path) -> dict[str, np.ndarray] | np.ndarray:
    """Reads a file of arrays.

    Args:
        path: The file; its first bytes decide the format, not its suffix.

    Returns:
        The arrays of an ``.npz`` by their names, or the one array of an ``.npy``.

    Raises:
        InputError: The file is missing, of another format, damaged, too large for the memory, or
            holds pickled objects.
    """
    try:
        kind = kind_of_inputs(path)
        if kind.of_pictures:
            raise InputError(
                f"The inputs are {kind.value}, and arrays are needed here.",
                where=str(path),
                fix="Pass an .npz file.",
            )
        with open_regular(path) as file:
            if kind is Kind.NPY:
                return read_npy(file)
            archive = Archive(file)
            return {name: archive.read(name) for name in archive.names}
    except MemoryError as error:
        raise InputError(
            "The inputs do not fit into memory.", where=str(path), fix="Pass fewer samples."
        ) from error
    except OSError as error:
        raise InputError(
            "The inputs file cannot be read.", where=f"{path} ({error.strerror})", fix=_HOW
        ) from error
    except ArchiveError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: ArchiveError) -> InputError:
    where = f"{path}, array {error.member!r}" if error.member else str(path)
    if error.pickled:
        return InputError(
            "The inputs hold pickled objects, which would run code when loaded.",
            where=where,
            fix="Save plain numeric arrays: array.astype(numpy.float32)",
        )
    return InputError(f"The inputs file cannot be read: {error}.", where=where, fix=_HOW)


LABELS: Final = "labels"


def named_arrays(
    path: Path, specs: Sequence[TensorSpec], constants: Sequence[ConstantInput] = ()
) -> tuple[dict[str, np.ndarray], np.ndarray | None, dict[str, np.ndarray]]:
    """Returns the array of every input by name, the labels, and arrays that constants have.

    Args:
        path: The file.
        specs: The model's inputs.
        constants: Inputs that are fixed, which the file may hold too.

    Raises:
        InputError: The file cannot be read, or its arrays are not called like the inputs.
    """
    found = _read(path, specs)
    labels = found.pop(LABELS, None)
    fixed = {one.name: found.pop(one.name) for one in constants if one.name in found}
    return _by_input(found, specs, path), labels, fixed


def require_constants(
    fixed: dict[str, np.ndarray], constants: Sequence[ConstantInput], samples: int, path: Path
) -> None:
    """Refuses a file that holds another value for a constant.

    It is held once, in the input's full shape; or where that begins with the batch, as one value
    for each sample.

    Args:
        fixed: The arrays of constants in it.
        constants: All constants.
        samples: How many samples the file has.
        path: The file.

    Raises:
        InputError: An array has another value, or another shape.
    """
    for one in constants:
        if one.name not in fixed:
            continue
        found, wanted = fixed[one.name], one.array
        by_sample = found.shape == (samples, *wanted.shape[1:]) and wanted.ndim > 0
        if found.shape != wanted.shape and by_sample:
            wanted = np.resize(wanted, found.shape)
        if found.shape != wanted.shape or found.dtype.kind not in "biuf":
            raise InputError(
                f"Constant input '{one.name}' is {found.dtype.name} of shape {found.shape} in the "
                f"file, and the model takes {one.dtype} of shape {one.shape}.",
                where=str(path),
                fix=f"Leave '{one.name}' out of the file: its value is fixed.",
            )
        if not np.array_equal(found, wanted):
            at = tuple(int(place) for place in np.argwhere(found != wanted)[0])
            raise InputError(
                f"Constant input '{one.name}' is {shown(found)} in the file, and is fixed at "
                f"{shown(one.array)}.",
                where=f"{path}: the first that differs is {one.name}[{', '.join(map(str, at))}]: "
                f"{found[at]}, not {wanted[at]}.",
                fix=f"Give samples of that value only, or fix another: --constant {one.name}=VALUE",
            )


def _read(path: Path, specs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """Reads every array of the file, by its name; that of an .npy has the only input's."""
    found = read_arrays(path)
    if isinstance(found, dict):
        return found
    if len(specs) == 1:
        return {specs[0].name: found}
    raise InputError(
        f"The file holds one array, and the model has {len(specs)} inputs.",
        where=str(path),
        fix=f"Save them by name: numpy.savez(path, {_as_keywords([s.name for s in specs])})",
    )


def _by_input(
    found: dict[str, np.ndarray], specs: Sequence[TensorSpec], path: Path
) -> dict[str, np.ndarray]:
    """Pairs the arrays with the model's inputs, by name."""
    names = [spec.name for spec in specs]
    if LABELS in names:
        raise InputError(
            f"The model has an input named {LABELS!r}, which is the name of the classes here.",
            where=str(path),
            fix="Give the model's input another name.",
        )
    if not found:
        raise InputError(
            "The inputs file holds no array but labels, or none at all.",
            where=str(path),
            fix=f"Save an array for {listed(names)}.",
        )
    missing = [name for name in names if name not in found]
    unknown = [name for name in found if name not in names]
    check_names(names, missing, unknown, path)
    return {name: found[name] for name in names}


def check_names(
    names: Sequence[str], missing: Sequence[str], unknown: Sequence[str], path: Path
) -> None:
    """Refuses a file whose arrays do not have the names of the inputs.

    Args:
        names: The inputs.
        missing: Those without an array of their name.
        unknown: The arrays without an input of their name.
        path: The file.

    Raises:
        InputError: An array is missing, or one is unknown.
    """
    if not missing and not unknown:
        return
    parts = [f"missing: {listed(missing)}"] if missing else []
    parts += [f"unknown: {listed(unknown)}"] if unknown else []
    raise InputError(
        f"The arrays are not the model's inputs ({'; '.join(parts)}).",
        where=str(path),
        fix=f"Name the arrays after the inputs: numpy.savez(path, {_as_keywords(names)}).",
    )


def _as_keywords(names: Sequence[str]) -> str:
    """Writes names as keyword arguments, or as a dict if Python does not allow one as a keyword."""
    if all(name.isidentifier() for name in names):
        return ", ".join(f"{name}=…" for name in names)
    return f"**{{{', '.join(f'{name!r}: …' for name in names)}}}"
