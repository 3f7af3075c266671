"""Replays the reference data in a bundle, and judges every output by the gate in its manifest.

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

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import (
    MANIFEST_NAME,
    Manifest,
    RuntimeInfo,
    at_batch,
)
from tokexport.runtimes.bundle.reference import Reference, read_reference
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.loading import load
from tokexport.runtimes.notebook import as_html, one_line
from tokexport.runtimes.signatures import trusted_manifest
from tokexport.runtimes.tolerances.comparison import (
    Comparison,
    compare,
    relative_error,
    unexplained_top1,
)
from tokexport.runtimes.tolerances.neighbourhoods import (
    Worst,
    worst,
)

#: The tolerances of which a gate holds one.
_GATES = {"local_tolerance", "relative_tolerance", "least_cosine"}
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
    certificates: Sequence[str | os.PathLike[str]] | None = None,
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
