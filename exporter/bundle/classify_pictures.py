"""Classifies pictures with a bundle, and writes the classes as CSV; needs no torch."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tokexport.exporter.bundle.ladder import filling_warnings
from tokexport.exporter.bundle.load_options import LoadOptions
from tokexport.exporter.config import InputConfig
from tokexport.exporter.errors import InputError, UsageError, listed
from tokexport.exporter.inputs.class_numbers import one_line, read_class_names
from tokexport.exporter.inputs.picture_files import pictures_below
from tokexport.exporter.inputs.pictures import PictureOptions, loss_warnings
from tokexport.exporter.json_values import plain
from tokexport.exporter.progress import Checklist
from tokexport.exporter.system.output_file import check_outside, check_place, written_whole
from tokexport.runtimes.pictures.classification import ClassifiedPicture, Classifier, ClassScore
from tokexport.runtimes.printable import printable


@dataclass(frozen=True)
class PictureClasses:
    """A picture and its highest classes.

    Attributes:
        file: The file, as it was given or found.
        classes: The highest classes, the highest first; none where the file cannot be used.
        notes: What the decoding lost or changed, a clause each.
        error: Why the file cannot be used; None where it was classified.
    """

    file: str
    classes: tuple[ClassScore, ...]
    notes: tuple[str, ...]
    error: str | None


@dataclass(frozen=True)
class ClassifiedPictures:
    """What a bundle makes of pictures.

    Attributes:
        bundle: The bundle that was run.
        score: What a score is: ``probability``, or ``score`` where a picture may have several
            classes.
        pictures: Every picture, in order.
        csv: The file that was written; None without one.
        warnings: What the decoding lost of how many pictures, and what of their folders was left
            out, a sentence each.
    """

    bundle: Path
    score: str
    pictures: tuple[PictureClasses, ...]
    csv: Path | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        found: dict[str, Any] = plain(self)
        return found

    @property
    def failed(self) -> InputError | None:
        """The error that names the files which cannot be used; None where all were classified."""
        broken = [one for one in self.pictures if one.error is not None]
        if not broken:
            return None
        return InputError(
            f"Some pictures cannot be used: {len(broken)} of {len(self.pictures)}.",
            where=listed([f"{one.file}: {(one.error or '').rstrip('.')}" for one in broken], 3),
            fix="Save these files again as the messages say, or leave them out.",
        )

    def as_csv(self) -> str:
        """Returns a line for every class of every picture, and one for a file without any."""
        text = io.StringIO(newline="")
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(("file", "rank", "class", "label", "score", "margin", "error"))
        for one in self.pictures:
            if one.error is not None:
                lines.writerow((one.file, "", "", "", "", "", one.error))
            for rank, found in enumerate(one.classes, 1):
                values = (found.label or "", found.score, found.margin)
                lines.writerow((one.file, rank, found.index, *values, ""))
        return text.getvalue()


def classify_pictures(
    bundle: Path,
    pictures: Sequence[Path],
    *,
    top: int = 5,
    csv: Path | None = None,
    force: bool = False,
    preprocess: str | None = None,
    labels: Path | None = None,
    options: LoadOptions | None = None,
    progress: Checklist | None = None,
) -> ClassifiedPictures:
    """Classifies pictures with a bundle; a file that cannot be used does not stop the others.

    Args:
        bundle: The folder that compile wrote.
        pictures: Files, and folders whose pictures are taken at any depth.
        top: How many classes a picture gets.
        csv: A file to write; None writes none.
        force: Whether a file at ``csv`` may be replaced.
        preprocess: The steps from a picture to the input; None takes those of the manifest.
        labels: A file with the name of every class, one a line; None takes those of the manifest.
        options: How the bundle is loaded.
        progress: Shows what is done; silent without one.

    Raises:
        UsageError: A number is below 1.
        InputError: A folder holds no pictures, or the names cannot be read.
        OutputExistsError: There is a file at ``csv``.
        WriteError: The file cannot be written.
        tokexport.runtimes.errors.RuntimesError: The bundle is altered, classifies no pictures, or
            cannot run here.
    """
    if top < 1:
        raise UsageError(f"--top is {top}.", fix="Pass a number of 1 or more.")
    InputConfig(preprocess=preprocess)  # checks it
    if csv is not None:
        check_outside(csv, bundle)
        check_place(csv, force)
    found = [pictures_below(path) if _is_folder(path) else ([path], 0) for path in pictures]
    files = [one for below, _ in found for one in below]
    names = None if labels is None else tuple(map(one_line, read_class_names(labels).labels))
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    with checklist, (options or LoadOptions()).load(bundle) as runner:
        steps = None if preprocess is None else PictureOptions(preprocess).steps(runner.inputs)
        classifier = Classifier(runner, top, labels=names, steps=steps)
        with checklist.stage("classify"):
            classified = checklist.counted(classifier.classified(files), len(files))
            plain_ones = tuple(map(_plain, classified))
    used = sum(one.error is None for one in plain_ones)
    notes = Counter(note for one in plain_ones for note in one.notes)
    warnings = (
        *loss_warnings(notes, len(files), sum(others for _, others in found)),
        *filling_warnings(runner, used),
    )
    done = ClassifiedPictures(bundle, classifier.form, plain_ones, csv, warnings)
    if csv is not None:
        with written_whole(csv, "classes") as partial:
            partial.write_text(done.as_csv(), encoding="utf-8")
    return done


def _is_folder(path: Path) -> bool:
    """Returns whether a path is a folder; one that cannot be reached is decoded, and named then."""
    with suppress(OSError):
        return path.is_dir()
    return False


def _plain(one: ClassifiedPicture) -> PictureClasses:
    """Returns a result whose texts a terminal can show, in a line each."""
    error = None if one.error is None else one.error.what
    file = printable(one.file).replace("\n", r"\n").replace("\t", r"\t")
    return PictureClasses(file, one.classes, one.notes, error)
