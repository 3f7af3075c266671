"""Runs a bundle on the samples of a file, and writes what it gives; needs no torch."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tokexport.exporter.bundle.ladder import filling_warnings
from tokexport.exporter.bundle.load_options import LoadOptions
from tokexport.exporter.config import InputConfig
from tokexport.exporter.errors import InputError
from tokexport.exporter.inputs.batches import Batches, read_inputs
from tokexport.exporter.inputs.class_numbers import classes_of_bundle
from tokexport.exporter.inputs.pictures import PictureOptions
from tokexport.exporter.json_values import plain
from tokexport.exporter.parity.hits import accuracy, class_warnings
from tokexport.exporter.progress import Checklist
from tokexport.exporter.system.output_file import check_outside, check_place, written_whole
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.bundle_runner import BundleRunner
from tokexport.runtimes.bundle.manifest import TensorSpec, batch_of


@dataclass(frozen=True)
class RunResult:
    """The result of a run of a bundle.

    Attributes:
        bundle: The bundle that was run.
        output: The file that was written.
        samples: The number of samples, padding left out.
        outputs: The shape of every output array in the file, by name.
        inputs: Where the samples come from, a clause.
        accuracy: The share of labelled samples whose largest value in the first output is the
            label's, 0 to 1; None without labels, or where that output has no classes.
        files: The file of every sample, where they are pictures.
        warnings: What a reader has to know, a sentence each.
    """

    bundle: Path
    output: Path
    samples: int
    outputs: dict[str, tuple[int, ...]]
    inputs: str = ""
    accuracy: float | None = None
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        found: dict[str, Any] = plain(self)
        return found

    def sentence(self) -> str:
        """Returns the summary of the run: a line, and one for each warning."""
        arrays = ", ".join(f"{name} {shape}" for name, shape in self.outputs.items())
        right = "" if self.accuracy is None else f"; {self.accuracy:.2%} of the labels are right"
        said = f"{self.samples} samples → {self.output}: {arrays}{right}"
        return "\n".join((said, *(f"warning: {one}" for one in self.warnings)))


def run_bundle(
    bundle: Path,
    inputs: Path,
    output: Path,
    *,
    force: bool = False,
    samples: int | None = None,
    preprocess: str | None = None,
    labels: Path | None = None,
    options: LoadOptions | None = None,
    progress: Checklist | None = None,
) -> RunResult:
    """Runs a bundle on every sample of a file, or on the pictures of a folder.

    Args:
        bundle: The folder that compile wrote.
        inputs: An ``.npz`` with the samples along the leading axis of each array; or pictures: a
            folder, a ``.csv`` of files and labels, or one.
        output: The ``.npz`` to write: an array (samples, …) per output that has the batch as its
            leading axis, (batches, …) per output that has not.
        force: Whether a file at ``output`` may be replaced.
        samples: How many samples are used, evenly spaced; None uses all.
        preprocess: The steps from a picture to the input; None takes those of the manifest.
        labels: A file with the names of the classes, one a line; None takes those of the
            manifest.
        options: How the bundle is loaded.
        progress: Shows what is done; silent without one.

    Raises:
        UsageError: A number is below 1.
        InputError: The inputs do not fit the bundle.
        OutputExistsError: There is a file at ``output``.
        WriteError: The file cannot be written.
        tokexport.runtimes.errors.RuntimesError: The bundle is altered, or cannot run here.
    """
    InputConfig(inputs=inputs, samples=samples, preprocess=preprocess, labels=labels)  # checks them
    check_outside(output, bundle)
    check_place(output, force)
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    with checklist, (options or LoadOptions()).load(bundle) as runner:
        specs, batch = _largest(runner)
        with checklist.stage("read"):
            manifest = runner.manifest
            own, known = manifest.preprocessing, partial(classes_of_bundle, manifest)
            pictures = PictureOptions(preprocess, own, labels, known, checklist.counted)
            constants = runner.constants
            batches = read_inputs(inputs, specs, batch, samples, constants, pictures)
        with checklist.stage("run"):
            watched = replace(batches, watch=checklist.counted)
            rows = [runner.run(arrays) for arrays in _without_repeats(runner, watched, batch)]
    results = {}
    for name in rows[0]:
        found = [row[name] for row in rows]
        together = not runner.shares_runs and found[0].shape[:1] != (batch,)
        results[name] = np.stack(found) if together else np.concatenate(found)[: batches.samples]
    _write(output, results)
    shapes = {name: tuple(array.shape) for name, array in results.items()}
    accuracy, warnings = _accuracy(next(iter(results.values())), batches)
    warnings = (*batches.warnings, *filling_warnings(runner, batches.samples), *warnings)
    return RunResult(
        *(bundle, output, batches.samples, shapes),
        *(batches.origin, accuracy, batches.files, warnings),
    )


def _largest(runner: BundleRunner) -> tuple[tuple[TensorSpec, ...], int]:
    """Returns the inputs for the most samples that are run at once, and how many these are."""
    if not runner.shares_runs:
        return runner.inputs, batch_of(runner.inputs)
    most = max(runner.batches)
    sized = [replace(spec, shape=(most, *spec.shape[1:])) for spec in runner.inputs]
    return tuple(sized), most


def _without_repeats(
    runner: BundleRunner, batches: Batches, batch: int
) -> Iterator[dict[str, Array]]:
    """Yields the batches; the last without its repeats where the runner takes fewer samples."""
    for at, arrays in enumerate(batches):
        left = batches.samples - at * batch
        yield {name: one[:left] for name, one in arrays.items()} if runner.shares_runs else arrays


def _accuracy(logits: np.ndarray, batches: Batches) -> tuple[float | None, tuple[str, ...]]:
    """Returns the share of labels that the first output meets, and what a reader has to know."""
    if batches.labels is None:
        return None, ()
    try:
        found = accuracy(logits[None], batches.labels)
    except InputError as error:  # its outputs are as wanted without labels too
        return None, (f"The labels were not compared. {error.what}",)
    return found, class_warnings(batches, logits)


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with written_whole(path, "outputs") as partial, zipfile.ZipFile(partial, "w") as file:
        for name, array in arrays.items():  # savez has no room for an output "file"
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
