"""Replays the reference data in a bundle, and judges every output by the gate in its manifest.

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
                    (size,), how far the channels of an output may be off whose gate is one over
                    all samples, along its axes 1, 2, …, and ``top1`` along the last

An output passes when every value is off by no more than its neighbourhoods allow
(``tokexport.runtimes.tolerances.neighbourhoods``), with the gate's ``local_tolerance`` as the
floor; with an absolute tolerance, and in bundles of older versions, when its largest difference
over the gate's scale is at most the gate's ``relative_tolerance``, and no largest entry is
elsewhere that is not explained with the gate's ``top1_tolerance`` as the floor, where it has one.
An output of whole numbers when at most that fraction of it differs; an output whose gate has a
``least_cosine``, when its cosine over all batches is no smaller, and the root of its mean squared
difference, over the gate's ``spread``, is at most its ``spread_tolerance``. The spread is that of
all samples that the model was compiled with: the few here may vary less. With ``channel/<name>`` no
channel may be off by more than that, and no largest entry elsewhere that it does not explain;
bundles made before have none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.bundle_files import file_in
from tokexport.runtimes.bundle.manifest import (
    MANIFEST_NAME,
    Manifest,
    RuntimeInfo,
    TensorSpec,
    at_batch,
)
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.files.array_archive import Archive, ArchiveError
from tokexport.runtimes.files.regular_files import open_regular
from tokexport.runtimes.loading import load
from tokexport.runtimes.notebook import as_html, one_line
from tokexport.runtimes.signatures import trusted_manifest
from tokexport.runtimes.tolerances.comparison import (
    Channels,
    Comparison,
    compare,
    relative_error,
    unexplained_top1,
)
from tokexport.runtimes.tolerances.neighbourhoods import (
    Neighbourhoods,
    RoundingError,
    Worst,
    as_samples,
    limits,
    worst,
)

#: The tolerances of which a gate holds one.
_GATES = {"local_tolerance", "relative_tolerance", "least_cosine"}
#: The tolerances of a gate that uses rounding errors.
_OF_ROUNDING = {"local_tolerance", "top1_tolerance"}
#: The key of channels for moved largest entries.
TOP1 = "top1"
#: The type of arithmetic, by the precision of a bundle.
_COMPUTED_IN = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class OutputResult:
    """The result of one output.

    Attributes:
        name: The output.
        comparison: Its distance from the reference, over all batches.
        relative_error: The largest difference over the gate's scale, or the fraction of differing
            elements of an output of whole numbers.
        relative_tolerance: What the gate allows for that; None where it is one of the cosine, or of
            every value.
        worst: The value that uses most of its tolerance; None where the gate has none for each
            value.
        least_cosine: The smallest cosine that the gate allows; None where it asks for none.
        spread_error: The root of the mean squared difference, over the gate's spread; None where
            the gate has none.
        spread_tolerance: The largest that the gate allows; None where it has none.
        passed: Whether it is within the gate.
        failure: What the figures over all samples leave unseen, a clause; '' where all is right.
        allowance: How far a value, a channel or a largest entry may be off, the mean over all;
            None where the gate has one number.
    """

    name: str
    comparison: Comparison
    relative_error: float
    relative_tolerance: float | None
    least_cosine: float | None
    spread_error: float | None
    spread_tolerance: float | None
    passed: bool
    worst: Worst | None = None
    failure: str = ""
    allowance: float | None = None

    @property
    def why_not(self) -> str:
        """Why it did not pass, a clause; '' where it did."""
        if self.passed or self.failure:
            return self.failure
        if self.worst is not None and not self.worst.share <= 1:
            place = ", ".join(map(str, self.worst.index))
            return (
                f"is off by {self.worst.error:.2e} at [{place}], and {self.worst.allowed:.2e} is "
                "allowed there"
            )
        far, least = self.comparison, self.least_cosine
        if least is not None and not far.cosine >= least:
            return f"has a cosine of {far.cosine:.4f}, and {least:g} is the least"
        if self.spread_error is not None and self.spread_tolerance is not None:
            return (
                f"is off by {self.spread_error:.2f} of its spread, and {self.spread_tolerance:g} "
                "is allowed"
            )
        return (
            f"is off by {self.relative_error:.2e} of its scale, and "
            f"{self.relative_tolerance or 0:.2e} is allowed"
        )


@dataclass(frozen=True)
class VerifyResult:
    """The result of verifying a bundle.

    Attributes:
        runtime: What ran it.
        batches: Number of batches replayed.
        outputs: How each output did.
        left_out: Number of samples in them that were not compared, for a near-tie in each.
        batch: The number of samples of a batch.
        rungs: The results of the bundle's further artifacts, each by itself.
    """

    runtime: RuntimeInfo
    batches: int
    outputs: tuple[OutputResult, ...]
    left_out: int = 0
    batch: int = 1
    rungs: tuple[VerifyResult, ...] = ()

    @property
    def ladder(self) -> tuple[VerifyResult, ...]:
        """The result of each artifact, in the order of the bundle."""
        return (self, *self.rungs)

    def named_outputs(self) -> Iterator[tuple[str, VerifyResult, OutputResult]]:
        """Yields the outputs of each artifact, with its result.

        The name of an output says the artifact where there are several.
        """
        for one in self.ladder:
            for output in one.outputs:
                yield at_batch(output.name, one.batch) if self.rungs else output.name, one, output

    @property
    def passed(self) -> bool:
        """Whether every output of every artifact is within its gate."""
        return all(output.passed for _, _, output in self.named_outputs())

    def __repr__(self) -> str:
        """Returns the verdict, what ran, and how far off each output is, in a line."""
        outputs = (f"{name} is off by {_far(one)}" for name, _, one in self.named_outputs())
        return one_line(*self._summary(), *outputs)

    def _repr_html_(self) -> str:
        """Returns the same as HTML, for a notebook."""
        verdict, sentence = self._summary()
        rows = [
            (name, _far(output), "passed" if output.passed else output.failure or "failed")
            for name, _, output in self.named_outputs()
        ]
        return as_html(verdict, sentence, (), (("output", "largest error", ""), rows))

    def _summary(self) -> tuple[str, str]:
        said = f"{self.batches} batches on {self.runtime.flavour} {self.runtime.version}"
        return "PASSED" if self.passed else "FAILED", said


def _far(output: OutputResult) -> str:
    return f"{output.comparison.max_abs:.1e}"


def verify_bundle(
    bundle: str | os.PathLike[str],
    *,
    threads: int | None = None,
    require_kernels: bool = False,
    public_key: str | os.PathLike[str] | None = None,
    certificates: Sequence[str | os.PathLike[str]] = (),
) -> VerifyResult:
    """Runs a bundle on its reference inputs and compares with its reference outputs.

    Args:
        bundle: The folder that compile wrote.
        threads: Number of threads for a CPU runtime; None takes as many as cores are free.
        require_kernels: Whether to refuse a bundle that would run without the native kernels of
            its target.
        public_key: As ``load`` takes it.
        certificates: As ``load`` takes them.

    Raises:
        SignatureError: A signature is asked for, and it is missing or does not hold.
        BundleError: The bundle is not whole, or has no reference data or no gate for an output.
        RuntimeMissingError: The bundle's runtime is not installed.
        KernelsError: The native kernels are required, and are not there or do not load.
        BuildError: The runtime cannot load the artifact.
        RunError: The artifact cannot run on this machine.
    """
    folder = Path(bundle)
    manifest = trusted_manifest(folder, public_key, certificates)
    require_gates(folder, manifest)
    with load(
        folder,
        threads=threads,
        require_kernels=require_kernels,
        public_key=public_key,
        certificates=certificates,
    ) as loaded:
        return verify_artifacts(folder, manifest, loaded.runners)


def require_gates(bundle: Path, manifest: Manifest) -> None:
    """Refuses a bundle without a gate for one of its outputs.

    Raises:
        BundleError: An output of an artifact has none.
    """
    for one in manifest.ladder:
        for spec in one.outputs:
            if not _GATES & one.gates.get(spec.name, {}).keys():
                raise BundleError(
                    f"The manifest has no gate for output {spec.name}.",
                    where=str(bundle / MANIFEST_NAME),
                    fix="Compile the model anew.",
                )


def verify_artifacts(
    bundle: Path, manifest: Manifest, runners: Mapping[int, Runner]
) -> VerifyResult:
    """Runs each artifact of an open bundle on its reference inputs, and compares.

    Args:
        bundle: The folder that compile wrote.
        manifest: Its manifest, with a gate for every output.
        runners: Each artifact, by how many samples it takes at once.

    Raises:
        BundleError: The bundle has no reference data.
        RunError: An artifact cannot run on this machine.
    """
    first, *others = (
        verify_runner(runners[one.batch], one, read_reference(bundle, one))
        for one in manifest.ladder
    )
    return replace(first, rungs=tuple(others))


def verify_runner(runner: Runner, manifest: Manifest, reference: Reference) -> VerifyResult:
    """Runs an open bundle on its reference inputs and compares with its reference outputs.

    Args:
        runner: The bundle, as ``load`` opens it.
        manifest: Its manifest, with a gate for every output.
        reference: Its reference data.

    Raises:
        RunError: The artifact cannot run on this machine.
    """
    candidate = _replay(runner, reference.inputs, reference.batches)
    results = tuple(
        _judge(spec.name, reference, candidate[spec.name], manifest) for spec in manifest.outputs
    )
    figures = reference.batches, results, reference.left_out, reference.samples
    return VerifyResult(runner.runtime, *figures)


def reference_inputs(bundle: Path, batch: int | None = None) -> dict[str, Array]:
    """Returns the inputs of a bundle's reference data, (batches, *the input's shape) by name.

    Args:
        bundle: The folder that compile wrote; its files are not checked here.
        batch: Of the artifact that takes so many samples at once; None is the first.

    Raises:
        BundleError: It is no bundle, has no reference data that fits it, or no artifact for these
            samples.
    """
    ladder = trusted_manifest(bundle).ladder
    for one in ladder:
        if batch in (None, one.batch):
            return read_reference(bundle, one).inputs
    raise BundleError(
        f"The bundle has no artifact for {batch} samples.",
        where=str(bundle),
        fix=f"Pass one of {', '.join(str(one.batch) for one in ladder)}.",
    )


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


def _judge(name: str, reference: Reference, found: Array, manifest: Manifest) -> OutputResult:
    wanted = reference.outputs[name]
    one, other = reference.compared(wanted), reference.compared(found)
    comparison = compare(one, other)
    gate = manifest.gates[name]
    error = comparison.relative
    if wanted.dtype.kind == "f" and "scale" in gate:
        error = relative_error(comparison.max_abs, gate["scale"])
    tolerance, cosine = gate.get("relative_tolerance"), gate.get("least_cosine")
    spread_error, spread_tolerance = None, gate.get("spread_tolerance")
    if spread_tolerance is not None and "spread" in gate:
        spread_error = relative_error(comparison.rms, gate["spread"])
    most, failure, allowance = None, "", None
    computed_in = _COMPUTED_IN.get(manifest.precision, "float32")
    if "local_tolerance" in gate:
        allowed = reference.allowed(name, gate["local_tolerance"], computed_in)
        most = worst(one, other, reference.compared(allowed))
        allowance = float(np.mean(allowed))
    if "top1_tolerance" in gate:
        explained = reference.allowed(name, gate["top1_tolerance"], computed_in)
        failure = unexplained_top1(one, other, reference.compared(explained))
        allowance = float(np.mean(explained))
    if name in reference.channels and spread_tolerance is not None:
        channels = reference.channels[name]
        failure = channels.failure(reference.by_sample(wanted), reference.by_sample(found))
        allowance = float(np.mean([np.mean(each) for each in channels.allowed.values()]))
    passed = (
        not failure
        and (tolerance is None or error <= tolerance)
        and (cosine is None or comparison.cosine >= cosine)
        and (spread_error is None or spread_tolerance is None or spread_error <= spread_tolerance)
        and (most is None or most.share <= 1)
    )
    figures = error, tolerance, cosine, spread_error, spread_tolerance
    return OutputResult(name, comparison, *figures, passed, most, failure, allowance)


def _replay(runner: Runner, inputs: dict[str, Array], batches: int) -> dict[str, Array]:
    """Runs batch after batch; returns each output's values, (batches, *shape)."""
    runs = [
        runner.run({name: array[index] for name, array in inputs.items()})
        for index in range(batches)
    ]
    return {spec.name: np.stack([run[spec.name] for run in runs]) for spec in runner.outputs}


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
