"""Runs a bundle on the samples of a file, and writes what it gives; needs no torch."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokexport.exporter.config import check_threads
from tokexport.exporter.inputs.batches import Batches, read_inputs
from tokexport.exporter.json_values import plain
from tokexport.exporter.system.output_file import check_place, written_whole
from tokexport.runtimes.loading import load


@dataclass(frozen=True)
class RunResult:
    """The result of a run of a bundle.

    Attributes:
        bundle: The bundle that was run.
        output: The file that was written.
        samples: The number of samples, padding left out.
        outputs: The shape of every output array in the file, by name.
    """

    bundle: Path
    output: Path
    samples: int
    outputs: dict[str, tuple[int, ...]]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        found: dict[str, Any] = plain(self)
        return found

    def sentence(self) -> str:
        """Returns the summary of the run, one line."""
        arrays = ", ".join(f"{name} {shape}" for name, shape in self.outputs.items())
        return f"{self.samples} samples → {self.output}: {arrays}"


def run_bundle(
    bundle: Path,
    inputs: Path,
    output: Path,
    force: bool = False,
    threads: int | None = None,
    *,
    require_kernels: bool = False,
) -> RunResult:
    """Runs a bundle on every sample of a file.

    Args:
        bundle: The folder that compile wrote.
        inputs: An ``.npz`` with the samples along the leading axis of each array.
        output: The ``.npz`` to write: an array (samples, …) per output that has the batch as its
            leading axis, (batches, …) per output that has not.
        force: Whether a file at ``output`` may be replaced.
        threads: The most threads for a CPU runtime; None leaves the choice to the runtime.
        require_kernels: Whether to fail where the target's native kernels do not load.

    Raises:
        InputError: The inputs do not fit the bundle.
        OutputExistsError: There is a file at ``output``.
        WriteError: The file cannot be written.
        tokexport.runtimes.errors.RuntimesError: The bundle is altered, or cannot run here.
    """
    check_threads(threads)
    check_place(output, force)
    with load(bundle, threads=threads, require_kernels=require_kernels) as runner:
        first = runner.inputs[0].shape
        batch = first[0] if first else 1
        batches = read_inputs(inputs, runner.inputs, batch, constants=runner.constants)
        rows = [runner.run(arrays) for arrays in batches]
    results = {name: _joined([row[name] for row in rows], batches, batch) for name in rows[0]}
    _write(output, results)
    shapes = {name: tuple(array.shape) for name, array in results.items()}
    return RunResult(bundle, output, batches.samples, shapes)


def _joined(rows: list[np.ndarray], batches: Batches, batch: int) -> np.ndarray:
    """Joins the batches of one output along the samples, without the padding of the last."""
    if rows[0].shape[:1] == (batch,):
        joined: np.ndarray = np.concatenate(rows)[: batches.samples]
        return joined
    return np.stack(rows)


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with written_whole(path, "outputs") as partial, zipfile.ZipFile(partial, "w") as file:
        for name, array in arrays.items():  # savez has no room for an output "file"
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
