"""Reads the arrays that a model is traced, proven and timed on, or draws them from a seed.

A file of S samples, batch N::

    data.npz  x (S, C, H, W)     →  Batches.arrays["x"] (⌈S/N⌉, N, C, H, W)
              labels (S,)        →  Batches.labels (S,)

The last batch is filled up by repeating the last sample; the repeats never count in an accuracy.
Pictures become the same, by the steps that the source or the user says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tokexport.exporter.errors import InputError, UsageError, listed
from tokexport.exporter.inputs.kinds import kind_of_inputs
from tokexport.exporter.inputs.named_arrays import LABELS, named_arrays, require_constants
from tokexport.exporter.inputs.pictures import PictureOptions, read_pictures
from tokexport.exporter.inputs.samples import Watch, cut, evenly_spaced, unwatched
from tokexport.exporter.number_lists import parse_numbers
from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.manifest import TensorSpec


@dataclass(frozen=True, eq=False)
class Batches:
    """Samples cut into batches of one size.

    Attributes:
        names: The model's inputs, in the model's order.
        arrays: Each input's values, (batches, N, …): a batch along the first axis.
        samples: The number of real samples; what the last batch holds beyond is repeats.
        labels: The class of every real sample, (samples,) integers; None when not given.
        origin: Where the values come from, a clause for the report.
        kinds: What kind of inputs every batch is: ``samples``, ``zeros``; empty where all are one.
        watch: Is called for every batch, to show progress.
        files: The file of every real sample, where they are pictures.
        warnings: What a reader has to know of how they were read, a sentence each.
        classes: The number of each class by its name, where pictures name theirs.
        classes_by_place: How many classes are numbered only by their place in sorted order, which
            fits a model of exactly so many; 0 where something else says their numbers.
    """

    names: tuple[str, ...]
    arrays: dict[str, np.ndarray]
    samples: int
    labels: np.ndarray | None
    origin: str
    kinds: tuple[str, ...] = ()
    watch: Watch = unwatched
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    classes: Mapping[str, int] = field(default_factory=dict)
    classes_by_place: int = 0

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(self.arrays[self.names[0]])

    def by_kind(self) -> dict[str, list[int]]:
        """Returns the batches of every kind of inputs."""
        found: dict[str, list[int]] = {}
        for row, kind in enumerate(self.kinds or ("samples",) * len(self)):
            found.setdefault(kind, []).append(row)
        return found

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields every batch as the model takes it: each input's (N, …) by its name."""
        for index in self.watch(range(len(self)), len(self)):
            yield {name: self.arrays[name][index, ...] for name in self.names}


def read_inputs(
    path: Path,
    specs: Sequence[TensorSpec],
    batch: int,
    samples: int | None = None,
    constants: Sequence[ConstantInput] = (),
    pictures: PictureOptions | None = None,
) -> Batches:
    """Reads the samples of a file or folder and cuts them into batches of ``batch``.

    A file of arrays is an ``.npz`` with one array per input, by the input's name and in any order,
    and optionally ``labels``; a model with one input takes a plain ``.npy``, which has no names.
    The leading axis of an array is the samples. An input that has no leading axis of ``batch``
    in the model (a scalar, a table) is given once, in its full shape, and goes into every batch.

    Pictures are a folder of them, whose subfolders are their classes; a ``.csv`` of files and
    labels; or one file.

    Args:
        path: The file or folder.
        specs: The model's inputs; the shapes include the batch.
        batch: The number of samples the model takes at once, N.
        samples: How many samples of the file to take, evenly spaced from the first on; all without
            it, or where there are no more.
        constants: Inputs that are fixed: the file may leave them out, or hold that value.
        pictures: How pictures become the input; None knows no steps of theirs.

    Returns:
        The batches, in the order of the file.

    Raises:
        InputError: The file cannot be read, or does not fit the inputs.
        tokexport.runtimes.errors.PictureError: A picture cannot be decoded.
        tokexport.runtimes.errors.PreprocessingError: The steps of pictures are not known.
    """
    kind = kind_of_inputs(path)
    if kind.of_pictures:
        found = read_pictures(path, kind, specs, samples, pictures or PictureOptions())
        return Batches(
            names=(specs[0].name,),
            arrays={specs[0].name: cut(found.values, batch)},
            samples=len(found.values),
            labels=found.labels,
            origin=found.origin,
            files=found.files,
            warnings=found.warnings,
            classes=found.classes,
            classes_by_place=found.classes_by_place,
        )
    named, labels, fixed = named_arrays(path, specs, constants)
    per_sample = {spec.name for spec in specs if spec.shape[:1] == (batch,)}
    for spec in specs:
        _check_shape(named[spec.name], spec, spec.name in per_sample)
    count = _count_samples({name: named[name] for name in named if name in per_sample}, path)
    require_constants(fixed, constants, count, path)
    if labels is not None:
        _check_labels(labels, count)
    taken = evenly_spaced(count, samples or count)
    arrays: dict[str, np.ndarray] = {}
    for spec in specs:
        values = _fit_dtype(named.pop(spec.name), spec)
        _check_finite(values, spec.name)
        if spec.name in per_sample:
            arrays[spec.name] = cut(values[taken], batch)
        else:
            arrays[spec.name] = np.stack([values] * -(-len(taken) // batch))
    whole = f"{len(taken)} of {count}" if len(taken) < count else f"{count}"
    noun = "sample" if count == 1 else "samples"
    return Batches(
        names=tuple(spec.name for spec in specs),
        arrays=arrays,
        samples=len(taken),
        labels=None if labels is None else labels[taken].astype(np.int64),
        origin=f"{whole} {noun} of {path.name}",
    )


def synthetic_inputs(specs: Sequence[TensorSpec], batches: int, seed: int) -> Batches:
    """Draws inputs from a seed: standard normal floats, 0 or 1 for integers and booleans.

    ``uint8`` takes all of its 256 values, as an image does; other integers stay at 0 and 1, which
    are valid as a mask and as an index into any table. Each input has a generator of its own, made
    from the seed and the input's name, so neither the order of the inputs nor another input
    changes its values, and the first batch is the same whatever the number of batches.

    Args:
        specs: The model's inputs; the shapes include the batch.
        batches: How many batches to draw, at least 1.
        seed: The seed, 0 or more.

    Raises:
        InputError: An input's dtype has no values to draw (complex, text).
        UsageError: The seed is negative.
    """
    if seed < 0:
        raise UsageError(f"The seed is {seed}.", fix="Pass a seed of 0 or more.")
    arrays = {spec.name: _draw(spec, batches, seed) for spec in specs}
    first = specs[0].shape
    return Batches(
        names=tuple(spec.name for spec in specs),
        arrays=arrays,
        samples=batches * (first[0] if first else 1),
        labels=None,
        origin=f"seeded synthetic inputs (normal, seed {seed}): not real data",
    )


def parse_shape(text: str, batch: int | None = None) -> tuple[int, ...]:
    """Reads a shape such as ``1,3,224,224``.

    Args:
        text: Whole numbers of 1 or more, separated by commas.
        batch: Takes the place of the first number when given.

    Raises:
        UsageError: The text is not a list of whole numbers of 1 to 10^18, or the batch is less than
            1.
    """
    shape = parse_numbers("The input shape", text, "1,3,224,224, batch first")
    if batch is not None and batch < 1:
        raise UsageError(f"The batch is {batch}.", fix="Pass a batch of 1 or more.")
    return shape if batch is None else (batch, *shape[1:])


def _check_shape(array: np.ndarray, spec: TensorSpec, per_sample: bool) -> None:
    """Refuses an array whose shape, apart from the samples, is not the input's."""
    shape = tuple(spec.shape)
    wanted = shape[1:] if per_sample else shape
    got = array.shape[1:] if per_sample else array.shape
    if got == wanted and array.ndim == len(shape):
        return
    fix = f"Bring the array to ({'samples, ' if per_sample else ''}{', '.join(map(str, wanted))})"
    if per_sample and array.shape == wanted:
        fix = "Add the axis of samples: array[None]"
    elif per_sample and len(got) == len(wanted) == 3 and got == (*wanted[1:], wanted[0]):
        fix = "The channels come last in it: numpy.transpose(array, (0, 3, 1, 2))"
    raise InputError(
        f"Input {spec.name!r} has shape {array.shape}, and the model takes {shape}"
        + (", any number of samples first." if per_sample else "."),
        fix=fix,
    )


def _count_samples(arrays: Mapping[str, np.ndarray], path: Path) -> int:
    """Returns the number of samples, the same in every array; 1 when no input has samples."""
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise InputError(
            "The inputs have different numbers of samples.",
            where=listed([f"{name}: {count}" for name, count in counts.items()]),
            fix="Save as many samples of each.",
        )
    samples = next(iter(counts.values()), 1)
    if samples == 0:
        raise InputError("The inputs hold no samples.", where=str(path), fix="Save at least one.")
    return samples


def _check_labels(labels: np.ndarray, samples: int) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"The labels are {labels.dtype.name} of shape {labels.shape}.",
            fix=f"Save one whole number for each sample: shape ({samples},), int64.",
        )
    if len(labels) != samples:
        raise InputError(
            f"There are {len(labels)} labels for {samples} samples.",
            fix="Save one for each sample.",
        )
    if int(labels.min()) < 0:
        row = int(np.argmax(labels < 0))
        raise InputError(
            f"Label {labels[row]} is negative.",
            where=f"{LABELS}[{row}]",
            fix="Number the classes from 0, and leave samples without a class out.",
        )


def _numpy_dtype(spec: TensorSpec) -> np.dtype[Any]:
    try:
        return np.dtype(spec.dtype)
    except TypeError as error:
        raise InputError(
            f"Input {spec.name!r} is {spec.dtype}, a type that numpy arrays do not have.",
            fix="Let the model take float32 and convert inside its forward.",
        ) from error


def _fit_dtype(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Returns the array in the input's dtype where no value changes by it; refuses otherwise.

    A narrower type of the same kind is widened (float16 → float32, int32 → int64), as is a foreign
    byte order. Everything else is the user's to decide.
    """
    wanted = _numpy_dtype(spec)
    if array.dtype.kind == wanted.kind and np.can_cast(array.dtype, wanted, "safe"):
        return array.astype(wanted, copy=False)
    fix = f"Convert it: array.astype(numpy.{wanted.name})"
    if array.dtype.kind in "iu" and wanted.kind == "f":
        fix = (
            "Preprocess as the model was trained (for images: scale to 0 … 1, subtract the mean, "
            f"divide by the deviation) and save as numpy.{wanted.name}."
        )
    raise InputError(
        f"Input {spec.name!r} is {array.dtype.name}, and the model takes {wanted.name}.", fix=fix
    )


def _check_finite(array: np.ndarray, name: str) -> None:
    if array.dtype.kind not in "fc" or bool(np.isfinite(array).all()):
        return
    index = tuple(int(i) for i in np.unravel_index(np.argmin(np.isfinite(array)), array.shape))
    raise InputError(
        f"Input {name!r} holds {array[index]}, and there are no outputs to compare for it.",
        where=f"First at {name}[{', '.join(map(str, index))}]",
        fix="Clean the data (numpy.nan_to_num), or leave the sample out.",
    )


def _draw(spec: TensorSpec, batches: int, seed: int) -> np.ndarray:
    dtype = _numpy_dtype(spec)
    name = int.from_bytes(hashlib.sha256(spec.name.encode()).digest()[:8], "big")
    random = np.random.default_rng([seed, name])
    shape = (batches, *spec.shape)
    if dtype.kind == "f":
        drawn = random.standard_normal(shape, dtype=np.float64 if dtype.itemsize > 4 else "f4")
        return np.asarray(drawn, dtype=dtype)
    if dtype == np.uint8:
        return random.integers(0, 256, shape, dtype=np.uint8)
    if dtype.kind in "iub":
        return random.integers(0, 2, shape).astype(dtype)
    raise InputError(
        f"Input {spec.name!r} is {dtype.name}, and there are no synthetic values of that type.",
        fix="Pass real ones with --inputs.",
    )
