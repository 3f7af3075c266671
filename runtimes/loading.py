"""Loads a bundle: reads its manifest, checks its files, opens its runner."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tokexport.runtimes import native_library
from tokexport.runtimes.bundle.bundle_files import beside, check_files, file_in
from tokexport.runtimes.bundle.bundle_runner import BundleRunner
from tokexport.runtimes.bundle.manifest import MANIFEST_NAME, Manifest, TensorSpec
from tokexport.runtimes.bundle.manifest_reader import broken_manifest
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.compatibility import check_compatibility
from tokexport.runtimes.cores.affinity import on_cores
from tokexport.runtimes.cores.free_cores import free_cores_since
from tokexport.runtimes.cores.processor_use import read_processor
from tokexport.runtimes.cores.thread_count import check_thread_count
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.files.ir_contents import check_ir, weights_beside
from tokexport.runtimes.files.onnx_contents import ContentsError, onnx_contents
from tokexport.runtimes.signatures import trusted_manifest

#: The suffix of the artifact of each flavour whose contents are checked.
_SUFFIXES: Final = {"onnxruntime-cpu": ".onnx", "openvino-cpu": ".xml"}


def load(
    bundle: str | os.PathLike[str],
    *,
    threads: int | None = None,
    cores: Collection[int] | None = None,
    require_kernels: bool = False,
    batches: Collection[int] | None = None,
    public_key: str | os.PathLike[str] | None = None,
    certificates: Sequence[str | os.PathLike[str]] | None = None,
) -> BundleRunner:
    """Loads a bundle for running, and warns where native kernels are there and do not load.

    Args:
        bundle: The folder that compile wrote.
        threads: Number of threads for a CPU runtime, its native kernels among them, 1 to 1024;
            None, the default, takes as many as cores are free: those of this process, less what
            other programs keep busy, within the quota of its control group.
        cores: The numbers of the cores that these threads are kept on, and that of ``submit``; None
            leaves them to the system. The thread that calls ``run`` takes part, and is the
            caller's own to keep.
        require_kernels: Whether to refuse a bundle that would run without the native kernels of
            its target; TensorRT has none.
        batches: Which artifacts of the bundle are loaded, by the number of samples that they take
            at once; None loads all.
        public_key: The PEM file of a key: the bundle has to be signed by it, which is verified
            before anything is parsed. None takes that of ``TOKEXPORT_PUBLIC_KEY``, where it is set.
        certificates: PEM files instead, which the signer's certificate has to come from; None for
            none, and an empty list is refused.

    Returns:
        The runner, which takes any number of samples; it frees what it holds at ``close`` or at the
        end of a ``with``.

    Raises:
        SignatureError: A signature is asked for, and it is missing or does not hold.
        BundleError: The bundle is not whole, or its manifest does not describe its artifact.
        RuntimeMissingError: The bundle's runtime, or what verifies signatures, is not installed.
        KernelsError: The native kernels are required, and are not there or do not load.
        BuildError: The runtime cannot load the artifact.
        IncompatibleError: The runtime, the system or the processor here is not what it needs.
        RunError: The artifact cannot run on this machine, or so many threads or cores are not.
    """
    folder = Path(bundle)
    check_thread_count(threads)
    before = None if threads or cores is not None else read_processor()
    manifest = trusted_manifest(folder, public_key, certificates)
    check_compatibility(manifest)
    check_files(folder, manifest)
    chosen = _chosen(folder, manifest, batches)
    runners: list[Runner] = []
    try:
        with on_cores(cores):
            count = threads or len({*(cores or ())}) if before is None else free_cores_since(before)
            for one in chosen:
                check_contents(folder, one)
                runners.append(open_runner(folder, one, threads=count))
                native_library.require_kernels(runners[-1].runtime, asked=require_kernels)
                runners[-1].hold_to(one.checks)
        loaded = BundleRunner(runners, chosen, cores)
    except BaseException:
        for runner in runners:
            runner.close()
        raise
    problems = (runner.runtime.details.get(native_library.PROBLEM) for runner in runners)
    if problem := next(filter(None, problems), None):
        said = f"{problem} The bundle runs without them, slower. {native_library.FIX}"
        warnings.warn(said, native_library.KernelsWarning, stacklevel=2)
    return loaded


def _chosen(
    folder: Path, manifest: Manifest, batches: Collection[int] | None
) -> tuple[Manifest, ...]:
    """Returns the manifests of the artifacts to load, each by itself.

    Raises:
        BundleError: The artifact takes no samples, or none is for a number asked for.
    """
    ladder = {one.batch: one for one in manifest.ladder}
    if manifest.batch < 1:
        raise broken_manifest(folder / MANIFEST_NAME, "an artifact takes no samples")
    wanted = tuple(ladder) if batches is None else tuple(dict.fromkeys(batches))
    missing = [batch for batch in wanted if batch not in ladder]
    if missing or not wanted:
        raise BundleError(
            f"The bundle has no artifact for {' or '.join(map(str, missing)) or 'no'} samples.",
            where=str(folder),
            fix=f"Pass some of {', '.join(map(str, ladder))}, or compile with --batch.",
        )
    return tuple(ladder[batch] for batch in wanted)


def check_contents(bundle: Path, manifest: Manifest) -> None:
    """Checks the artifact of a bundle before a runtime reads it.

    An engine of TensorRT is opaque; only its hash is checked. Runtimes may choose a format by the
    suffix, so the suffix is checked too.

    Raises:
        BundleError: It holds what tokexport never writes, or reads a file that has no hash.
    """
    artifact = file_in(bundle, manifest.artifact)
    suffix = _SUFFIXES.get(manifest.runtime.flavour)
    if suffix is not None and artifact.suffix != suffix:
        raise broken_manifest(
            bundle / MANIFEST_NAME,
            f"the artifact of {manifest.runtime.flavour} should end in {suffix}, and it is "
            f"{manifest.artifact!r:.80}",
        )
    match suffix:
        case ".onnx":
            check_onnx(bundle, manifest, manifest.artifact)
        case ".xml":
            with _refused(artifact, "artifact"):
                check_ir(artifact)
            weights = weights_beside(artifact)
            read = [weights.name] if weights.exists() else []
            _require_listed(bundle, manifest, manifest.artifact, read, "artifact")


def check_onnx(bundle: Path, manifest: Manifest, name: str, what: str = "artifact") -> None:
    """Checks an ONNX file of a bundle before a runtime reads it.

    Args:
        bundle: The bundle's folder.
        manifest: Its manifest.
        name: The file.
        what: What it is, for a message.

    Raises:
        BundleError: It holds what tokexport never writes, or reads a file that has no hash.
    """
    path = file_in(bundle, name)
    with _refused(path, what):
        read = onnx_contents(path).files
    _require_listed(bundle, manifest, name, read, what)


@contextmanager
def _refused(path: Path, what: str) -> Iterator[None]:
    """Refuses a bundle whose file cannot be read in the block, or holds what none of ours does."""
    try:
        yield
    except (ContentsError, OSError) as error:
        raise BundleError(
            f"The {what} is not one that tokexport writes: {error}.",
            where=str(path),
            fix="Do not use this bundle, or compile the model anew.",
        ) from error


def _require_listed(
    bundle: Path, manifest: Manifest, name: str, read: Collection[str], what: str
) -> None:
    """Refuses a bundle with a file that reads others, relative to itself, which have no hash."""
    for unlisted in sorted(beside(name, read) - manifest.files.keys()):
        raise BundleError(
            f"The {what} reads a file that the manifest does not list: {unlisted!r:.80}.",
            where=str(bundle / name),
            fix="Do not use this bundle: tokexport lists every file.",
        )


def open_runner(
    bundle: Path, manifest: Manifest, *, threads: int | None = None, native: bool = True
) -> Runner:
    """Makes the runner of a bundle whose files were checked; see ``load``.

    It returns all outputs of the artifact, that of the checks included. Without ``native`` the
    project's kernels are left out, as if they were not installed.
    """
    artifact = file_in(bundle, manifest.artifact)
    runner: Runner
    # The only table from flavours to runners.
    match manifest.runtime.flavour:
        case "onnxruntime-cpu":
            from tokexport.runtimes.ort.runner import OrtRunner

            runner = OrtRunner.from_file(artifact, threads=threads, native=native)
        case "openvino-cpu":
            from tokexport.runtimes.openvino.runner import OpenVinoRunner

            runner = OpenVinoRunner.from_file(
                artifact, precision=manifest.precision, threads=threads, native=native
            )
        case "tensorrt" | "tensorrt-rtx":
            from tokexport.runtimes.trt.runner import TrtRunner

            runner = TrtRunner.from_file(
                artifact,
                inputs=manifest.inputs,
                outputs=manifest.computed,
                built=manifest.runtime,
            )
        case _:
            raise unknown_flavour(bundle, manifest)
    try:
        _check_specs(bundle, "inputs", manifest.inputs, runner.inputs)
        _check_specs(bundle, "outputs", manifest.computed, runner.outputs)
    except BundleError:
        runner.close()
        raise
    runner.inputs, runner.computed = manifest.inputs, manifest.computed
    runner.outputs, runner.strict = runner.computed, True
    runner.ranges = manifest.input_ranges
    runner.constants = manifest.constant_inputs
    runner.manifest = manifest
    return runner


def unknown_flavour(bundle: Path, manifest: Manifest) -> BundleError:
    """Returns the error of a bundle for a runtime that this tokexport does not know.

    Args:
        bundle: Its folder.
        manifest: Its manifest.
    """
    return BundleError(
        f"The bundle is for {manifest.runtime.flavour!r}, which this tokexport does not know.",
        where=str(bundle / MANIFEST_NAME),
        fix="Update tokexport: pip install --upgrade tokexport",
    )


def _check_specs(
    bundle: Path, kind: str, wanted: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...]
) -> None:
    """Refuses an artifact whose inputs or outputs are not the manifest's, in its order."""
    if len(wanted) == len(found) and all(map(_agree, wanted, found)):
        return
    raise BundleError(
        f"The manifest does not describe the artifact: its {kind} differ.",
        where=f"{bundle}: the manifest has {'; '.join(map(str, wanted))}, "
        f"the artifact {'; '.join(map(str, found))}",
        fix="Compile the model anew.",
    )


def _agree(wanted: TensorSpec, found: TensorSpec) -> bool:
    """Returns whether two specs are equal, where -1 stands for any size."""
    return (
        (wanted.name, wanted.dtype, len(wanted.shape))
        == (found.name, found.dtype, len(found.shape))
    ) and all(a == b or -1 in (a, b) for a, b in zip(wanted.shape, found.shape, strict=True))
