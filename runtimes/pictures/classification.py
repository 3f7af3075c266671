"""Classifies pictures with a loaded bundle, by numpy and Pillow alone.

::

    picture → decoded → preprocessed ┐
    picture → decoded → preprocessed ├ a batch → the output of the scores → the highest classes
    (the last one repeated)          ┘

A picture that cannot be decoded takes no place in a batch: its result holds the error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.class_scores import INDEPENDENT, LOGITS, ClassScores
from tokexport.runtimes.bundle.manifest import Manifest, TensorSpec
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.errors import (
    BundleError,
    InputMismatchError,
    PictureError,
    PreprocessingError,
    RunError,
)
from tokexport.runtimes.pictures.decoding import decode
from tokexport.runtimes.pictures.preprocessing import Preprocessing

#: A picture: its file, or its pixels (H, W, 3) uint8: red, green, blue.
PictureLike = str | os.PathLike[str] | np.ndarray
_ARRAYS: Final = "Use its outputs: runner.run(arrays), or tokexport run --inputs --output."


@dataclass(frozen=True)
class ClassScore:
    """One class of a picture.

    Attributes:
        index: Its number, the place in the model's output.
        label: Its name; None where nothing says it.
        score: Its probability, 0 to 1; the model's own number where that is no probability.
        margin: How far the score is above that of the next class; None for the last class.
    """

    index: int
    label: str | None
    score: float
    margin: float | None


@dataclass(frozen=True)
class ClassifiedPicture:
    """A picture and its highest classes.

    Attributes:
        file: The file as it was given; '' for pixels.
        classes: The highest classes, the highest first; empty where the picture cannot be used.
        notes: What the decoding lost or changed, a clause each.
        error: Why the picture cannot be used; None where it was classified.
    """

    file: str
    classes: tuple[ClassScore, ...]
    notes: tuple[str, ...] = ()
    error: PictureError | PreprocessingError | None = None


class Classifier:
    """Classifies pictures with a runner.

    Args:
        runner: What ``load`` returned.
        top: How many classes a picture gets, at least 1.
        labels: The name of each class in the order of the output; None takes those of the bundle.
        steps: The steps from a picture to the input; None takes those of the bundle.

    Raises:
        InputMismatchError: The bundle takes no pictures, scores no classes, or has another number
            of classes than there are labels.
        PreprocessingError: Nothing says how a picture becomes its input, or the steps do not fit.
    """

    def __init__(
        self,
        runner: Runner,
        top: int = 5,
        *,
        labels: Sequence[str] | None = None,
        steps: Preprocessing | None = None,
    ) -> None:
        if top < 1:
            raise InputMismatchError(f"The number of classes is {top}.", fix="Pass 1 or more.")
        self._runner, self._top = runner, top
        manifest = _manifest_of(runner)
        scores = _known_scores(manifest)
        self._form, self._scores = scores.form, _output_of_scores(manifest, scores)
        self._spec = _picture_input(runner)
        self._steps = steps or _steps_of(manifest)
        self._check_steps()
        given = manifest.labels if labels is None else tuple(labels)
        self._labels = _checked_labels(given, self._scores, asked=labels is not None)

    @property
    def form(self) -> str:
        """What a score is: ``probability``, or ``score`` where the model has classes apart."""
        return "score" if self._form == INDEPENDENT else "probability"

    @property
    def batch(self) -> int:
        """How many pictures go into a run."""
        runner = self._runner
        return max(runner.batches) if runner.shares_runs else self._spec.shape[0]

    @property
    def classes(self) -> int:
        """How many classes the model has."""
        return self._scores.shape[-1]

    def classified(self, pictures: Iterable[PictureLike]) -> Iterator[ClassifiedPicture]:
        """Yields the result of each picture in order, batch by batch.

        Args:
            pictures: Files, or pixels (H, W, 3) uint8.

        Raises:
            InputMismatchError: It is one picture, not several.
            RunError: The runtime failed, or gave numbers that are not finite.
        """
        if isinstance(pictures, str | bytes | os.PathLike):
            raise InputMismatchError(
                f"A {type(pictures).__name__} is given, not several pictures.",
                fix="Pass a list: classify(runner, [picture]).",
            )
        waiting: list[tuple[ClassifiedPicture, np.ndarray | None]] = []
        count = 0
        for picture in pictures:
            waiting.append(self._read(picture))
            count += waiting[-1][1] is not None
            if count == self.batch:
                yield from self._finished(waiting)
                waiting, count = [], 0
        yield from self._finished(waiting)

    def prepared(self, pixels: np.ndarray) -> dict[str, Array]:
        """Returns the input of the model for one picture, by name, with one sample.

        Args:
            pixels: (H, W, 3) uint8: red, green, blue.

        Raises:
            PreprocessingError: The steps do not give what the model takes.
        """
        return {self._spec.name: self._steps.apply(pixels)[None]}

    def ranked(self, outputs: Mapping[str, Array]) -> list[tuple[ClassScore, ...]]:
        """Returns the highest classes of each sample of a run, the highest first.

        Args:
            outputs: What the runner returned, for any number of samples.

        Raises:
            RunError: The runtime gave numbers that are not finite.
        """
        scores = outputs[self._scores.name].astype(np.float64)
        if not np.isfinite(scores).all():
            raise RunError(
                "The artifact gave scores that are not finite.",
                where=f"Output: {self._scores}",
                fix="Hold the bundle to its gates: tokexport verify BUNDLE.",
            )
        return [
            self._highest(one)
            for one in (probabilities(scores) if self._form == LOGITS else scores)
        ]

    def _read(self, picture: PictureLike) -> tuple[ClassifiedPicture, np.ndarray | None]:
        """Decodes and preprocesses a picture, or returns what is wrong with it."""
        if isinstance(picture, np.ndarray):
            return ClassifiedPicture("", ()), self._steps.apply(picture)
        file = os.fspath(picture)
        try:
            decoded = decode(Path(file))
            values = self._steps.apply(decoded.pixels)
        except (PictureError, PreprocessingError) as error:
            return ClassifiedPicture(file, (), error=error), None
        return ClassifiedPicture(file, (), decoded.notes), values

    def _finished(
        self, waiting: Sequence[tuple[ClassifiedPicture, np.ndarray | None]]
    ) -> Iterator[ClassifiedPicture]:
        """Runs one batch, and gives each picture its classes."""
        rows = [values for _, values in waiting if values is not None]
        classes = iter(self._run(rows) if rows else ())
        for one, values in waiting:
            if values is None:
                yield one
            else:
                yield ClassifiedPicture(one.file, next(classes), one.notes)

    def _run(self, rows: list[np.ndarray]) -> list[tuple[ClassScore, ...]]:
        """Returns the highest classes of some pictures; a batch of one size is filled up."""
        missing = 0 if self._runner.shares_runs else self.batch - len(rows)
        found = self._runner.run({self._spec.name: np.stack(rows + rows[-1:] * missing)})
        return self.ranked({self._scores.name: found[self._scores.name][: len(rows)]})

    def _highest(self, scores: np.ndarray) -> tuple[ClassScore, ...]:
        """Returns the highest classes of a picture; of equal ones the lower number comes first."""
        order = np.argsort(-scores, kind="stable")[: self._top + 1]
        values = [float(scores[place]) for place in order]
        return tuple(
            ClassScore(
                index=int(place),
                label=(self._labels[place] or None) if self._labels else None,
                score=values[rank],
                margin=values[rank] - values[rank + 1] if rank + 1 < len(values) else None,
            )
            for rank, place in enumerate(order[: self._top])
        )

    def _check_steps(self) -> None:
        """Refuses steps that fit no picture, before the first is decoded."""
        steps, spec = self._steps, self._spec
        height, width = picture_size(spec)
        if takes_bytes(spec) != (steps.embedded is not None):
            raise PreprocessingError(
                f"The steps make another kind of input than {spec}.",
                where=f"Found in: {steps.origin}.",
                fix="Leave the steps out: the bundle has its own.",
            )
        if steps.size != (height, width):
            raise PreprocessingError(
                f"The pictures become {steps.size[0]} × {steps.size[1]}, and the model takes "
                f"{height} × {width}.",
                where=f"Found in: {steps.origin}.",
                fix=f"Pass the steps for its size: --preprocess size={height}x{width},mean=…",
            )
        steps.check()


def classify(
    runner: Runner,
    pictures: Iterable[PictureLike],
    *,
    top: int = 5,
    labels: Sequence[str] | None = None,
    steps: Preprocessing | None = None,
) -> tuple[ClassifiedPicture, ...]:
    """Returns the highest classes of pictures; one that cannot be read holds its error.

    Args:
        runner: What ``load`` returned.
        pictures: Files, or pixels (H, W, 3) uint8; batches are filled up by repeats.
        top: How many classes a picture gets.
        labels: The name of each class in the order of the output; None takes those of the bundle.
        steps: The steps from a picture to the input; None takes those of the bundle.

    Raises:
        InputMismatchError: The bundle takes no pictures, scores no classes, or has another number
            of classes than there are labels.
        PreprocessingError: Nothing says how a picture becomes its input, or the steps do not fit.
        RunError: The runtime failed.
        RuntimeMissingError: Pillow is not installed.
    """
    return tuple(Classifier(runner, top, labels=labels, steps=steps).classified(pictures))


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax of logits (…, classes) over the classes."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return found


def _manifest_of(runner: Runner) -> Manifest:
    if runner.manifest is None:
        raise InputMismatchError(
            "The runner was not loaded from a bundle, so nothing says what its outputs are.",
            fix="Load a bundle: tokexport.runtimes.load(folder).",
        )
    return runner.manifest


def _known_scores(manifest: Manifest) -> ClassScores:
    if manifest.scores is None:
        raise InputMismatchError(
            "The model is no classifier: no output is known to score classes.",
            where=f"It gives {'; '.join(map(str, manifest.outputs))}.",
            fix=f"{_ARRAYS} A classifier of an earlier version is to be compiled anew.",
        )
    return manifest.scores


def _output_of_scores(manifest: Manifest, scores: ClassScores) -> TensorSpec:
    """Returns the output that scores the classes.

    Raises:
        BundleError: The manifest names one that cannot.
    """
    for spec in manifest.outputs:
        if spec.name == scores.output and len(spec.shape) == 2 and spec.shape[1] > 0:
            return spec
    raise BundleError(
        f"The manifest names an output of scores that is none: {scores.output!r:.80}.",
        where=f"Its outputs are {'; '.join(map(str, manifest.outputs))}.",
        fix="Compile the model anew.",
    )


def _picture_input(runner: Runner) -> TensorSpec:
    """Returns the one input, which takes pictures.

    Raises:
        InputMismatchError: It has another one, or takes something else.
    """
    if len(runner.inputs) == 1 and takes_pictures(runner.inputs[0]):
        return runner.inputs[0]
    raise InputMismatchError(
        "The model takes no pictures alone.",
        where=f"It takes {'; '.join(map(str, runner.inputs))}.",
        fix=f"Pictures go into one input (N, 3, H, W) float32 or (N, H, W, 3) uint8. {_ARRAYS}",
    )


def takes_pictures(spec: TensorSpec) -> bool:
    """Returns whether an input takes pictures: (N, 3, H, W) float32, or (N, H, W, 3) uint8."""
    numbers = len(spec.shape) == 4 and spec.shape[1] == 3 and spec.dtype == "float32"
    return numbers or takes_bytes(spec)


def takes_bytes(spec: TensorSpec) -> bool:
    """Returns whether an input takes the bytes of pictures, (N, H, W, 3) uint8."""
    return len(spec.shape) == 4 and spec.shape[3] == 3 and spec.dtype == "uint8"


def picture_size(spec: TensorSpec) -> tuple[int, int]:
    """Returns height and width of an input that takes pictures."""
    first = 1 if takes_bytes(spec) else 2
    return spec.shape[first], spec.shape[first + 1]


def _steps_of(manifest: Manifest) -> Preprocessing:
    if manifest.preprocessing is None:
        raise PreprocessingError(
            "Nothing says how a picture becomes the input of this model.",
            where="Its manifest has no preprocessing.",
            fix="Pass the steps that it was trained with: --preprocess size=224,mean=imagenet",
        )
    return Preprocessing.from_json(manifest.preprocessing)


def _checked_labels(
    labels: tuple[str, ...] | None, scores: TensorSpec, asked: bool
) -> tuple[str, ...] | None:
    """Refuses labels of another number than the model has classes."""
    if labels is None or len(labels) == scores.shape[-1]:
        return labels
    said = f"There are {len(labels)} labels, and the model has {scores.shape[-1]} classes."
    if asked:
        raise InputMismatchError(said, fix="Name every class, in the order of the model's output.")
    raise BundleError(said, where="They are those of the manifest.", fix="Compile the model anew.")
