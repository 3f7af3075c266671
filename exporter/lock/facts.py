"""Reads what a bundle is from its files; runs nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from tokexport.exporter.bundle.ladder import rung_name
from tokexport.exporter.lock.lock_file import (
    ArtifactFiles,
    BundleFacts,
    ModelHashes,
    ReferenceData,
)
from tokexport.exporter.lock.projections import projections
from tokexport.exporter.report.file_names import PAGE_DATA_NAME, PAGE_NAME, REPORT_NAME
from tokexport.exporter.typed_json import typed
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.bundle_files import file_in
from tokexport.runtimes.bundle.manifest import REFERENCE_NAME, Manifest, at_batch, batch_of
from tokexport.runtimes.bundle.reference import Reference, read_reference
from tokexport.runtimes.tolerances.neighbourhoods import as_samples

#: The files of a bundle that no runtime loads: they say how it was made.
_NOT_LOADED: Final = frozenset({REFERENCE_NAME, REPORT_NAME, PAGE_DATA_NAME, PAGE_NAME})
#: The keys of a preprocessing that say where it was found.
_FOUND_AT: Final = frozenset({"origin"})


def facts_of(bundle: Path, manifest: Manifest) -> BundleFacts:
    """Returns what a bundle is.

    Args:
        bundle: The folder that compile wrote; its files were checked.
        manifest: Its manifest.

    Raises:
        tokexport.runtimes.errors.BundleError: It has no reference data.
    """
    steps = manifest.preprocessing
    return BundleFacts(
        target=manifest.target,
        precision=manifest.precision,
        options=manifest.options,
        reduction=None if manifest.reduction is None else manifest.reduction["recipe"],
        token_schedule=manifest.token_schedule,
        inputs=_of_each(manifest, "inputs"),
        outputs=_of_each(manifest, "outputs"),
        returned=manifest.constant_outputs,
        fixed_inputs={one.name: hash_of([one.array]) for one in manifest.constant_inputs},
        preprocessing=None if steps is None else _without_origin(steps),
        tolerances={
            at_batch(name, one.batch) if manifest.rungs else name: gate
            for one in manifest.ladder
            for name, gate in one.gates.items()
        },
        model=_model(manifest.fingerprint),
        artifact=_artifact(bundle, manifest),
        reference=_reference(manifest, read_reference(bundle, manifest)),
        flips=_flips(bundle, manifest),
    )


def _without_origin(steps: Mapping[str, Any]) -> dict[str, Any]:
    """Returns steps, and those that the artifact does itself, without where they were found."""
    found = {name: value for name, value in steps.items() if name not in _FOUND_AT}
    inner = found.get("embedded")
    return found | {"embedded": _without_origin(inner)} if isinstance(inner, dict) else found


def _of_each(manifest: Manifest, kind: str) -> tuple[str, ...]:
    """Returns the inputs or outputs of each artifact, the first of the bundle first."""
    return tuple(str(spec) for one in manifest.ladder for spec in getattr(one, kind))


def hash_of(arrays: Iterable[Array]) -> str:
    """Returns the SHA-256 of arrays: their types, shapes and values, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _model(fingerprint: Mapping[str, Any] | None) -> ModelHashes | None:
    with suppress(ValueError):  # whoever edits a manifest may write anything there
        return None if fingerprint is None else typed(ModelHashes, fingerprint)
    return None


def _artifact(bundle: Path, manifest: Manifest) -> ArtifactFiles:
    not_loaded = {*_NOT_LOADED, manifest.kept_onnx}
    for rung in manifest.rungs:
        report = rung_name(REPORT_NAME, batch_of(rung.inputs))
        not_loaded |= {rung.reference, report, rung.kept_onnx}
    loaded = sorted(set(manifest.files) - not_loaded)
    named = "".join(f"{name} {manifest.files[name].lower()}\n" for name in loaded)
    size = sum(file_in(bundle, name).stat().st_size for name in loaded)
    return ArtifactFiles(hashlib.sha256(named.encode()).hexdigest(), size)


def _reference(manifest: Manifest, reference: Reference) -> ReferenceData:
    batch = batch_of(manifest.inputs)
    return ReferenceData(
        inputs_sha256=hash_of(reference.inputs[spec.name] for spec in manifest.inputs),
        samples=reference.batches * batch,
        left_out=reference.left_out,
        projections={
            spec.name: projections(as_samples(reference.outputs[spec.name], batch))
            for spec in manifest.outputs
        },
    )


def _flips(bundle: Path, manifest: Manifest) -> int | None:
    """Returns how many decisions of the artifact fell otherwise, as the bundle's report has it."""
    if REPORT_NAME not in manifest.files:
        return None
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        stages = json.loads(file_in(bundle, REPORT_NAME).read_text(encoding="utf-8"))["stages"]
        ties = stages[-1]["ties"]
        return 0 if ties is None else int(ties["flips"])
    return None
