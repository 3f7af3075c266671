"""Builds the artifact of a bundle anew from the ONNX file kept in it, and proves it; no torch."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from rich.console import Console

import tokexport
from tokexport.exporter.backends.backend import Backend
from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.bundle.bundle_folder import BundleWriter
from tokexport.exporter.bundle.ladder import hold_ladder
from tokexport.exporter.errors import UsageError
from tokexport.exporter.json_values import plain
from tokexport.exporter.progress import Checklist
from tokexport.exporter.report.tables import failed_gate
from tokexport.exporter.system.output_file import check_outside
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.runtimes.artifact_needs import artifact_needs
from tokexport.runtimes.bundle.bundle_files import check_files, file_in
from tokexport.runtimes.bundle.manifest import (
    BUILT_NOT_RUN,
    MANIFEST_NAME,
    PASSED,
    Manifest,
    RuntimeInfo,
)
from tokexport.runtimes.bundle.manifest_reader import broken_manifest
from tokexport.runtimes.bundle.reference import Reference, read_reference
from tokexport.runtimes.errors import BundleError, NoDeviceError
from tokexport.runtimes.files.ir_contents import weights_beside
from tokexport.runtimes.loading import check_onnx, open_runner, unknown_flavour
from tokexport.runtimes.signatures import SIGNATURE_NAME, trusted_manifest
from tokexport.runtimes.verification import VerifyResult, require_gates, verify_runner


class RuntimeBefore(TypedDict):
    """The runtime that an artifact was built by before.

    Attributes:
        flavour: Which build of it.
        version: Its exact version.
    """

    flavour: str
    version: str


class BundledRebuild(TypedDict):
    """How the artifact of a bundle was built anew.

    Attributes:
        created: When, in UTC, ISO 8601.
        tokexport_version: The version that did it.
        before: The runtime that it was built by before.
    """

    created: str
    tokexport_version: str
    before: RuntimeBefore


@dataclass(frozen=True)
class RebuildResult:
    """A bundle whose artifact was built anew.

    Attributes:
        bundle: The bundle that it was built from.
        output: The bundle that it is in now.
        status: ``PASSED``, or ``BUILT, NOT RUN`` where no device here could run it.
        flavour: The runtime that built it.
        version: The version of that.
        before: The runtime that had built the one before.
        batches: How many batches of the reference it was verified on; 0 where it did not run.
        not_run_reason: Why it did not run, a sentence; '' where it did.
        signature_dropped: Whether the bundle was signed: the signature is of the old artifact.
    """

    bundle: Path
    output: Path
    status: str
    flavour: str
    version: str
    before: RuntimeBefore
    batches: int
    not_run_reason: str
    signature_dropped: bool = False

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        found: dict[str, Any] = plain(self)
        return found

    def sentence(self) -> str:
        """Returns what was built and whether it was proven, a line."""
        proof = self.not_run_reason or f"within its gates on {self.batches} batches"
        was = f"{self.before['flavour']} {self.before['version']}"
        unsigned = " Its signature was of the old artifact: sign it anew." * self.signature_dropped
        return (
            f"{self.status}  {self.output}, by {self.flavour} {self.version} (was {was}): "
            f"{proof.removesuffix('.')}.{unsigned}"
        )


def rebuild(
    bundle: Path,
    output: Path | None = None,
    *,
    force: bool = False,
    progress: Checklist | None = None,
) -> RebuildResult:
    """Builds the artifact of a bundle anew with the runtime that is installed here.

    The old artifact is not opened, and may be damaged or of another version. The new bundle takes
    its place whole or not at all, after its artifact was verified against the reference.

    Args:
        bundle: The folder that compile wrote.
        output: The folder of the new bundle; None replaces the old one.
        force: Whether a bundle at ``output`` may be replaced.
        progress: Shows what is done; silent without one.

    Raises:
        UsageError: The bundle keeps no ONNX file, its artifact cannot be built from one alone, or
            the output lies in the bundle.
        GateError: The new artifact differs from the reference; nothing is written.
        OutputExistsError: There is something at the output that may not be replaced.
        WriteError: The new bundle cannot be written.
        tokexport.runtimes.errors.RuntimesError: Another file of the bundle is altered, or the
            runtime is missing or cannot build the artifact.
    """
    manifest = trusted_manifest(bundle)
    backend = _backend(bundle, manifest)
    require_gates(bundle, manifest)
    old = _artifact_files(manifest)
    check_files(bundle, manifest, but=old)
    kept = [_kept_onnx(bundle, manifest, one.kept_onnx) for one in manifest.ladder]
    references = [read_reference(bundle, one) for one in manifest.ladder]
    # The bundle may be reached by a link, which stays one.
    place = Path(os.path.realpath(bundle)) if output is None else output
    if os.path.realpath(place) != os.path.realpath(bundle):
        check_outside(place, bundle)
    signed = (bundle / SIGNATURE_NAME).is_file()
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    with checklist, BundleWriter(place, force or output is None) as written:
        folder = written.path
        kept_files = sorted(manifest.files.keys() - old)
        sizes = [file_in(bundle, name).stat().st_size for name in kept_files]
        written.require_space(sum(sizes) + sum(file_in(bundle, one).stat().st_size for one in kept))
        for name in kept_files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file_in(bundle, name), folder / name)
        with checklist.stage("build"):
            runtime = _built(backend, manifest, kept, folder)
        built = dataclasses.replace(
            manifest,
            status=BUILT_NOT_RUN,
            runtime=runtime,
            requires=artifact_needs(folder / manifest.artifact, runtime),
            rebuilt=_note(manifest.runtime),
            latency_ms=None,  # that of another runtime
            rungs=tuple(dataclasses.replace(rung, latency_ms=None) for rung in manifest.rungs),
        )
        with checklist.stage("verify"):
            proven, why_not = _verified(folder, built, references)
        if proven is not None:
            if failed := failed_gate(proven):
                raise failed
            built = dataclasses.replace(built, status=PASSED, runtime=proven.runtime)
            if built.rungs:
                with checklist.stage("verify"):
                    splits = hold_ladder(folder, built, None)
                built = dataclasses.replace(built, samples_independent=splits)
        written.commit(built)
    return RebuildResult(
        bundle=bundle,
        output=bundle if output is None else output,
        status=built.status,
        flavour=runtime.flavour,
        version=runtime.version,
        before=_before(manifest.runtime),
        batches=0 if proven is None else sum(one.batches for one in proven.ladder),
        not_run_reason=why_not,
        signature_dropped=signed,
    )


def _backend(bundle: Path, manifest: Manifest) -> Backend:
    """Returns what builds the artifact, or refuses one that cannot be built anew."""
    backend = BACKENDS.get(manifest.target)
    if backend is None or backend.name != manifest.runtime.name:
        raise unknown_flavour(bundle, manifest)
    if backend.runs_lowered:
        raise UsageError(
            f"The ONNX file of the bundle is its artifact: {backend.title} builds nothing from it.",
            where=str(bundle),
            fix="Run it as it is: `tokexport doctor` with the bundle says what it needs.",
        )
    suffix = Path(backend.artifact).suffix
    if manifest.precision not in backend.precisions or any(
        Path(one.artifact).suffix != suffix for one in manifest.ladder
    ):
        raise broken_manifest(
            bundle / MANIFEST_NAME,
            f"its precision or the name of its artifact is not one of {backend.title}",
        )
    if manifest.precision not in backend.rebuilds:
        raise UsageError(
            f"{backend.title} measures the ranges of {manifest.precision} on samples, which no "
            "bundle holds.",
            where=str(bundle),
            fix="Compile the model anew with the version of the runtime that is here.",
        )
    if any(one.kept_onnx is None for one in manifest.ladder):
        raise UsageError(
            "The bundle keeps no ONNX file to build each artifact from.",
            where=str(bundle),
            fix="Compile the model anew with --keep-onnx, or here.",
        )
    return backend


def _built(backend: Backend, manifest: Manifest, kept: Sequence[str], folder: Path) -> RuntimeInfo:
    """Builds each artifact of a bundle into a folder that holds the rest of it.

    Args:
        backend: What builds them.
        manifest: The manifest of the bundle.
        kept: The ONNX file of each artifact.
        folder: The folder.

    Returns:
        What built them.
    """
    if not manifest.rungs:
        artifact = folder / manifest.artifact
        with scratch_folder() as scratch:
            return backend.build(folder / kept[0], artifact, manifest.precision, scratch, {})
    # on the disk of the bundle, so that files can be renamed
    building = Path(tempfile.mkdtemp(dir=folder))
    places = {}
    for one, lowered in zip(manifest.ladder, kept, strict=True):
        built = building / f"batch-{one.batch}" / backend.artifact
        built.parent.mkdir(parents=True)
        with scratch_folder() as scratch:
            runtime = backend.build(folder / lowered, built, manifest.precision, scratch, {})
        places[built] = folder / one.artifact
    backend.place_ladder(places)
    shutil.rmtree(building)
    return runtime


def _kept_onnx(bundle: Path, manifest: Manifest, kept: str | None) -> str:
    """Returns the name of a kept ONNX file that is as tokexport writes it.

    Raises:
        BundleError: It has no hash, holds what tokexport never writes, or reads other files.
    """
    if kept is None or kept not in manifest.files or kept in _artifact_files(manifest):
        raise BundleError(
            f"The manifest has no hash of the kept ONNX file {kept!r:.80}.",
            where=str(bundle),
            fix="Do not use this bundle: tokexport lists every file.",
        )
    check_onnx(bundle, manifest, kept, "kept ONNX file")
    return kept


def _artifact_files(manifest: Manifest) -> frozenset[str]:
    """Returns the files that a build writes: the artifacts, and of IRs their weights."""
    artifacts = [Path(one.artifact) for one in manifest.ladder]
    weights = weights_beside(artifacts[0])
    return frozenset(path.as_posix() for path in (*artifacts, weights))


def _verified(
    folder: Path, built: Manifest, references: Sequence[Reference]
) -> tuple[VerifyResult | None, str]:
    """Returns how the new artifacts do, or why no device here runs them."""
    found = []
    for one, reference in zip(built.ladder, references, strict=True):
        try:
            runner = open_runner(folder, one)
        except NoDeviceError as error:
            return None, error.what
        with runner:
            runner.hold_to(one.checks)
            found.append(verify_runner(runner, one, reference))
    return dataclasses.replace(found[0], rungs=tuple(found[1:])), ""


def _before(runtime: RuntimeInfo) -> RuntimeBefore:
    return {"flavour": runtime.flavour, "version": runtime.version}


def _note(before: RuntimeInfo) -> dict[str, Any]:
    note: BundledRebuild = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "tokexport_version": tokexport.__version__,
        "before": _before(before),
    }
    return dict(note)
