"""Reads the reference data of a bundle: samples, and what eager gives for them.

reference.npz   inputs/<name>   (batches, *the input's shape)
                outputs/<name>  (batches, *the output's shape), of the model as its user gave it
                steady          (batches, samples), which samples are compared; all without it:
                                on the others a decision is so near a tie that it falls either
                                way, and outputs with one value a sample leave them out
                noise/<name>/…  (batches, samples or 1, …), what rounding explains in every
                                neighbourhood of an output, along its axes 0, 1, …, as a
                                ``share`` of values that belong to none, and of constants far
                                beyond the rest, ``fills``; and the ``scale`` of samples that
                                have one number each; of samples of one row each how far every
                                value may be off for its ``column``, (batches, samples, values);
                                bundles made before have none
                channel/<name>/…
                                (size,), how far the channels of an output may be off whose
                                gate is one over all samples, along its axes 1, 2, …, and
                                ``top1`` along the last
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.bundle_files import file_in
from tokexport.runtimes.bundle.manifest import Manifest, TensorSpec
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.files.array_archive import Archive, ArchiveError
from tokexport.runtimes.files.regular_files import open_regular
from tokexport.runtimes.tolerances.comparison import Channels
from tokexport.runtimes.tolerances.neighbourhoods import (
    Neighbourhoods,
    RoundingError,
    as_samples,
    limits,
)

#: The tolerances of a gate that uses rounding errors.
_OF_ROUNDING = {"local_tolerance", "top1_tolerance"}
#: The key of channels for moved largest entries.
TOP1 = "top1"


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference data of a bundle.

    Attributes:
        inputs: The inputs, (batches, *the input's shape) by name.
        outputs: What eager gives for them, (batches, *the output's shape) by name.
        batches: How many batches there are.
        tie_free: Which samples are compared, (batches, samples); None where all are.
        rounding_error: What rounding explains, by output and neighbourhood.
        scales: The scale of each sample of outputs with one number each.
        columns: How far values may be off for their column, of outputs with one row a sample.
        channels: How far channels may be off over all samples.
        samples: How many samples a batch has.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    batches: int
    tie_free: Array | None
    rounding_error: dict[str, RoundingError]
    scales: dict[str, Array]
    columns: dict[str, Array]
    channels: dict[str, Channels]
    samples: int

    @property
    def left_out(self) -> int:
        """How many samples are not compared."""
        return 0 if self.tie_free is None else int(np.count_nonzero(~self.tie_free))

    def compared(self, output: Array) -> Array:
        """Returns the samples of an output (batches, …) that are compared."""
        if self.tie_free is None or output.shape[:2] != self.tie_free.shape:
            return output
        return output[self.tie_free]

    def by_sample(self, output: Array) -> Array:
        """Returns the samples of an output (batches, …) that are compared, (samples, …)."""
        compared = self.compared(output)
        return compared if compared is not output else as_samples(output, self.samples)

    def allowed(self, name: str, floor: float, computed_in: str) -> Array:
        """Returns how far every value of an output (batches, …) may be off."""
        rounding_error = self.rounding_error[name]
        samples = len(rounding_error.share) // self.batches
        known = self.scales.get(name), self.columns.get(name)
        return limits(self.outputs[name], rounding_error, floor, computed_in, samples, *known)


def read_reference(bundle: Path, manifest: Manifest) -> Reference:
    """Reads the reference data of a bundle.

    Args:
        bundle: The folder that compile wrote; its files are not checked here.
        manifest: Its manifest.

    Raises:
        BundleError: It has no reference data, or none that fits its manifest.
    """
    if manifest.reference not in manifest.files:
        raise BundleError(
            f"The bundle has no {manifest.reference}, so there is nothing to verify it against.",
            where=str(bundle),
            fix="Compile the model anew.",
        )
    path = file_in(bundle, manifest.reference)
    try:
        with open_regular(path) as file:
            archive = Archive(file, packed=False)  # as compile writes it
            arrays = {name: archive.read(name) for name in archive.names}
    except (OSError, ArchiveError) as error:
        raise _bad_reference(path, str(error)) from error
    inputs = _take(path, arrays, "inputs", manifest.inputs)
    outputs = _take(path, arrays, "outputs", manifest.outputs)
    counts = {len(array) for array in (*inputs.values(), *outputs.values())}
    if len(counts) != 1 or counts == {0}:
        raise _bad_reference(path, f"its arrays have {sorted(counts)} batches")
    (count,) = counts
    tie_free = arrays.get("steady")
    fits = tie_free is None or (
        tie_free.dtype == bool and tie_free.ndim == 2 and len(tie_free) == count
    )
    if not fits or (tie_free is not None and not tie_free.any(axis=1).all()):
        raise _bad_reference(path, "its ``steady`` does not select samples in each batch")
    samples = manifest.batch
    rounding_error = {
        spec.name: _rounding_error(path, arrays, spec.name, outputs[spec.name])
        for spec in manifest.outputs
        if _OF_ROUNDING & manifest.gates.get(spec.name, {}).keys()
    }
    scales = {
        name: _of_samples(path, arrays, name, "scale", own.share.size)
        for name, own in rounding_error.items()
        if f"noise/{name}/scale" in arrays
    }
    columns = {
        name: _of_samples(path, arrays, name, "column", outputs[name].size)
        for name in rounding_error
        if f"noise/{name}/column" in arrays
    }
    channels = {
        spec.name: _channels(path, arrays, spec.name, as_samples(outputs[spec.name], samples))
        for spec in manifest.outputs
        if f"channel/{spec.name}/{TOP1}" in arrays
    }
    return Reference(
        inputs, outputs, count, tie_free, rounding_error, scales, columns, channels, samples
    )


def _channels(path: Path, arrays: dict[str, Any], name: str, flat: Array) -> Channels:
    """Returns how far the channels of an output (samples, …) may be off."""
    sizes = {axis: size for axis, size in enumerate(flat.shape) if axis and size > 1}

    def part(key: int | str, size: int) -> Array:
        own: Array | None = arrays.get(f"channel/{name}/{key}")
        if own is None or own.shape != (size,) or own.dtype.kind != "f" or np.isnan(own).any():
            raise _bad_reference(path, f"channel/{name}/{key} does not fit the output")
        return own

    allowed = {axis: part(axis, size) for axis, size in sizes.items()}
    return Channels(allowed, part(TOP1, flat.shape[-1] if flat.ndim > 1 else 1))


def _rounding_error(path: Path, arrays: dict[str, Any], name: str, output: Array) -> RoundingError:
    """Returns the rounding error of an output, a row for each of its samples."""
    share = arrays.get(f"noise/{name}/share")
    if share is None or share.ndim != 2 or len(share) != len(output) or share.dtype.kind != "f":
        raise _bad_reference(path, f"it does not say what rounding does to {name}")
    flat = as_samples(output, share.shape[1])
    by_axis = []
    for position, scale in enumerate(Neighbourhoods(flat).scales):
        found = arrays.get(f"noise/{name}/{position}")
        fits = found is not None and found.shape == (*share.shape, scale.shape[1])
        if found is None or not fits or found.dtype.kind != "f" or len(flat) != share.size:
            raise _bad_reference(path, f"noise/{name}/{position} does not fit the output")
        by_axis.append(found.reshape(share.size, -1).astype(np.float64))
    fills = np.zeros(share.size)  # in bundles made before
    if f"noise/{name}/fills" in arrays:
        fills = _of_samples(path, arrays, name, "fills", share.size)
    return RoundingError(tuple(by_axis), share.reshape(-1).astype(np.float64), fills)


def _of_samples(path: Path, arrays: dict[str, Any], name: str, part: str, size: int) -> Array:
    """Returns a part of an output's rounding error, a number for each sample or value."""
    found: Array = arrays[f"noise/{name}/{part}"]
    if found.size != size or found.dtype.kind != "f":
        raise _bad_reference(path, f"noise/{name}/{part} does not fit the output")
    return found.reshape(-1).astype(np.float64)


def _take(
    path: Path, arrays: dict[str, Any], kind: str, specs: tuple[TensorSpec, ...]
) -> dict[str, Array]:
    """The arrays of the inputs or of the outputs, each (batches, *shape)."""
    taken = {}
    for spec in specs:
        key = f"{kind}/{spec.name}"
        if key not in arrays:
            raise _bad_reference(path, f"it has no {key}")
        array = arrays[key]
        fits = array.ndim > 0 and spec.fits(array.shape[1:])
        same_kind = (array.dtype.kind == "f") == (np.dtype(spec.dtype).kind == "f")
        if not fits or not same_kind or (kind == "inputs" and array.dtype.name != spec.dtype):
            raise _bad_reference(
                path, f"{key} is {array.dtype.name} {array.shape}, and the model has {spec}"
            )
        taken[spec.name] = array
    return taken


def _bad_reference(path: Path, why: str) -> BundleError:
    return BundleError(
        f"The reference data does not fit the bundle: {why}.",
        where=str(path),
        fix="Compile the model anew.",
    )
