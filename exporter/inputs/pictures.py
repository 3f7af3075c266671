"""Reads pictures as the samples of a model: chooses, decodes, preprocesses, cuts into batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokexport.exporter.errors import InputError, listed
from tokexport.exporter.inputs.class_numbers import (
    ClassNames,
    NumberedClasses,
    numbered,
    read_class_names,
)
from tokexport.exporter.inputs.kinds import Kind
from tokexport.exporter.inputs.picture_files import PictureFiles, list_pictures
from tokexport.exporter.inputs.samples import Watch, evenly_spaced, unwatched
from tokexport.runtimes.bundle.manifest import TensorSpec
from tokexport.runtimes.pictures.classification import (
    picture_size,
    takes_bytes,
    takes_pictures,
)
from tokexport.runtimes.pictures.decoding import TURNED, decode
from tokexport.runtimes.pictures.preprocessing import Preprocessing
from tokexport.runtimes.pictures.steps_text import parse_preprocessing


@dataclass(frozen=True)
class PictureOptions:
    """How pictures become the input of a model.

    Attributes:
        preprocess: The steps that the user asks for, as a text; None takes ``own``.
        own: The steps that the source says, or those of a bundle as its manifest holds them; None
            where it says none.
        labels: A file with the names of the classes, one a line; None takes ``known``.
        known: Returns the names that the source has for its classes, None where it has none.
        watch: Is called for the files, to show progress.
    """

    preprocess: str | None = None
    own: Preprocessing | Mapping[str, Any] | None = None
    labels: Path | None = None
    known: Callable[[], ClassNames | None] = lambda: None
    watch: Watch = unwatched

    def steps(self, specs: Sequence[TensorSpec]) -> Preprocessing | None:
        """Returns the steps for a model; None where nothing says them.

        Args:
            specs: The model's inputs.

        Raises:
            InputError: Steps are asked for, and the model has no input for a picture, or one of
                another size.
            PreprocessingError: The text, or the manifest, says no steps.
        """
        if self.preprocess is None:
            own = self.own
            return Preprocessing.from_json(own) if isinstance(own, Mapping) else own
        spec = picture_input(specs)
        if takes_bytes(spec):
            raise InputError(
                "--preprocess replaces all steps, and the artifact does some of them itself.",
                where=f"It takes {spec}.",
                fix="Leave it out, or compile with other steps.",
            )
        found = parse_preprocessing(self.preprocess, picture_size(spec))
        require_size(found, spec)
        return found


@dataclass(frozen=True, eq=False)
class PictureSamples:
    """Pictures as samples of a model.

    Attributes:
        values: (samples, 3, H, W) float32, or (samples, H, W, 3) uint8.
        labels: (samples,) the number of the class of each; None where nothing says it.
        files: What a report calls each file.
        origin: Where they come from, a clause.
        warnings: What a reader has to know, a sentence each.
        classes: The number of each class by its name; empty where nothing says it.
        classes_by_place: How many classes are numbered only by their place in sorted order.
    """

    values: np.ndarray
    labels: np.ndarray | None
    files: tuple[str, ...]
    origin: str
    warnings: tuple[str, ...]
    classes: Mapping[str, int]
    classes_by_place: int


def picture_input(specs: Sequence[TensorSpec]) -> TensorSpec:
    """Returns the one input of a model that takes pictures.

    Raises:
        InputError: It has another input too, or takes something else.
    """
    if len(specs) == 1 and takes_pictures(specs[0]):
        return specs[0]
    raise InputError(
        "The model has no single input that takes pictures.",
        where=f"It takes {'; '.join(map(str, specs))}; pictures go into (N, 3, H, W) float32, or "
        "(N, H, W, 3) uint8 of --embed-preprocess.",
        fix="Preprocess pictures by yourself, and pass an .npz: numpy.savez(path, name=array).",
    )


def read_pictures(
    path: Path,
    kind: Kind,
    specs: Sequence[TensorSpec],
    samples: int | None,
    options: PictureOptions,
) -> PictureSamples:
    """Reads the pictures of a folder, a list or a file; only those that are used are decoded.

    Args:
        path: The folder, the list or the picture.
        kind: Which of them.
        specs: The model's inputs.
        samples: How many pictures to take, evenly spaced from the first on; None takes all.
        options: The steps, the names of the classes, and who watches.

    Raises:
        InputError: The model takes no pictures, nothing says their preprocessing, none are found,
            or a class is unknown.
        PictureError: A file cannot be decoded.
        PreprocessingError: The steps do not give what the model takes.
        RuntimeMissingError: Pillow is not installed.
    """
    spec, files = picture_input(specs), list_pictures(path, kind)
    steps = options.steps(specs)
    if steps is None:
        raise InputError(
            "Nothing says how a picture becomes the input of this model.",
            where=f"{path}; the model takes {spec}",
            fix=f"Pass the steps that it was trained with: {_example(spec)}",
        )
    require_size(steps, spec)
    classes = None if files.classes is None else _numbered(files, options, path)
    taken = evenly_spaced(len(files.paths), samples or len(files.paths))
    try:
        values = np.empty((len(taken), *spec.shape[1:]), spec.dtype)
    except MemoryError as error:
        raise InputError(
            f"{len(taken)} pictures do not fit into memory.",
            where=str(path),
            fix="Pass --samples with fewer.",
        ) from error
    notes: Counter[str] = Counter()
    for row, place in enumerate(options.watch(taken, len(taken))):
        picture = decode(files.paths[place])
        values[row] = steps.apply(picture.pixels)
        notes.update(picture.notes)
    labels = None
    if classes is not None and classes.numbers and files.classes is not None:
        labels = np.array([classes.numbers[files.classes[place]] for place in taken], np.int64)
    return PictureSamples(
        values=values,
        labels=labels,
        files=tuple(files.names[place] for place in taken),
        origin=_origin(path, len(taken), files, classes),
        warnings=(
            *loss_warnings(notes, len(taken), files.skipped),
            *_empty_classes(files),
            *(classes.warnings if classes else ()),
        ),
        classes=classes.numbers if classes is not None else {},
        classes_by_place=len(classes.numbers) if classes is not None and classes.by_place else 0,
    )


def require_size(steps: Preprocessing, spec: TensorSpec) -> None:
    """Refuses steps to another size than the model's, or to numbers where it takes bytes.

    Raises:
        InputError: They are.
    """
    if takes_bytes(spec) != (steps.embedded is not None):
        raise InputError(
            f"The steps make another kind of input than {spec}.",
            where=f"Their preprocessing is from: {steps.origin}",
            fix="Preprocess the pictures by yourself, and pass an .npz.",
        )
    if steps.size != picture_size(spec):
        made, wanted = (f"{height} × {width}" for height, width in (steps.size, picture_size(spec)))
        raise InputError(
            f"The pictures become {made}, and the model takes {wanted}.",
            where=f"Their preprocessing is from: {steps.origin}",
            fix=f"Pass the steps for its size: {_example(spec)}",
        )


def _example(spec: TensorSpec) -> str:
    """Returns an example of the option that says the steps, for the size of an input."""
    height, width = picture_size(spec)
    size = f"{height}" if height == width else f"{height}x{width}"
    return f"--preprocess size={size},crop=0.9,mean=imagenet,interpolation=bicubic"


def _numbered(files: PictureFiles, options: PictureOptions, path: Path) -> NumberedClasses:
    known = options.known() if options.labels is None else read_class_names(options.labels)
    return numbered(files.all_classes, known, path)


def _origin(path: Path, taken: int, files: PictureFiles, classes: NumberedClasses | None) -> str:
    """Says where the samples come from, and how their classes are numbered."""
    count = len(files.paths)
    whole = f"{taken} of {count}" if taken < count else f"{count}"
    said = f"{whole} {'picture' if count == 1 else 'pictures'} of {path.name or path}"
    if classes is None:
        return said
    noun = "class" if len(files.all_classes) == 1 else "classes"
    return f"{said} ({len(files.all_classes)} {noun}, {classes.how})"


def loss_warnings(notes: Mapping[str, int], count: int, skipped: int) -> tuple[str, ...]:
    """Returns what a reader has to know of how pictures were decoded, a sentence each.

    Args:
        notes: The notes of their decoding, and how many have each.
        count: How many pictures there are.
        skipped: How many files of their folders are no pictures.
    """
    lost = {note: many for note, many in notes.items() if note != TURNED}
    found = [f"In {many} of {count} pictures {note}." for note, many in lost.items()]
    if skipped:
        found.append(f"Files of the folder that are no pictures were left out: {skipped}.")
    return tuple(found)


def _empty_classes(files: PictureFiles) -> tuple[str, ...]:
    empty = [name for name in files.all_classes if name not in {*(files.classes or ())}]
    return (f"Classes without a picture: {listed(empty)}.",) if empty else ()
