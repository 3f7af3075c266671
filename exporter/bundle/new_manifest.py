"""Describes an artifact in a new manifest."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import tokexport
from tokexport.exporter.capture.fingerprint import Fingerprint
from tokexport.exporter.capture.token_cap import checks_of
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.eager.example_inputs import constants_of, picture_options
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.reference import Reference
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.hits import class_warnings
from tokexport.exporter.reduction.reduction_report import ReductionReport
from tokexport.exporter.source import Source
from tokexport.exporter.tuning.choices import Tuning
from tokexport.runtimes.bundle.manifest import (
    BUILT_NOT_RUN,
    SCHEMA_VERSION,
    Manifest,
    RuntimeInfo,
    TensorSpec,
)


def new_manifest(
    config: CompileConfig,
    source: Source,
    traced: Fingerprint,
    model: FlatModel,
    inputs: tuple[TensorSpec, ...],
    batches: Batches,
    reference: Reference,
    reduction: ReductionReport | None,
    tuning: Tuning | None,
    schedule: tuple[int, ...],
    runtime: RuntimeInfo,
) -> Manifest:
    """Returns the manifest of an artifact that was built and has not been run.

    Args:
        config: What was asked for.
        source: The model, as it was read.
        traced: The hashes of its trace.
        model: The same over flat tensors, with what its graph takes for granted.
        inputs: Its inputs.
        batches: The samples.
        reference: What it answers.
        reduction: What was put into it; None where nothing was.
        tuning: Which forms were chosen by measurement; None without tuning.
        schedule: The number of tokens at each attention.
        runtime: What built the artifact.
    """
    checks, steps = checks_of(model), picture_options(source, config).steps(inputs)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        tokexport_version=tokexport.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        target=config.target,
        status=BUILT_NOT_RUN,
        artifact=config.backend.artifact,
        runtime=runtime,
        precision=config.precision,
        inputs=inputs,
        outputs=tuple(
            TensorSpec(name, array.shape[1:], str(array.dtype))
            for name, array in reference.outputs.items()
            if checks is None or name != checks.output
        ),
        constant_outputs=reference.constants,
        token_schedule=schedule,
        gates={},  # filled in when every stage has passed its own
        source={"kind": source.kind, "location": source.location, "sha256": source.sha256},
        preprocessing=None if steps is None else steps.to_json(),
        files={},
        reduction=None if reduction is None else dict(reduction.for_manifest()),
        forms=None if tuning is None else tuning.for_manifest(),
        checks=checks,
        constant_inputs=constants_of(model),
        classes=_classes(batches, reference),
        fingerprint=dataclasses.asdict(traced),
        options=dict(config.for_manifest),
    )


def _classes(batches: Batches, reference: Reference) -> dict[str, int] | None:
    """Returns the numbers of the samples' classes; None where they may not be the model's."""
    if class_warnings(batches, next(iter(reference.outputs.values()))):
        return None
    return dict(batches.classes) or None
