"""Describes an artifact in the manifest of its bundle."""

from __future__ import annotations

from datetime import UTC, datetime

import tokexport
from tokexport.exporter.capture.token_cap import checks_of
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.eager.example_inputs import constants_of
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.reference import Reference
from tokexport.exporter.reduction.reduction_use import ReductionUse
from tokexport.exporter.source import Source
from tokexport.exporter.tuning.tuned_forms import Tuning
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
    model: FlatModel,
    inputs: tuple[TensorSpec, ...],
    reference: Reference,
    reduction: ReductionUse | None,
    tuning: Tuning | None,
    schedule: tuple[int, ...],
    runtime: RuntimeInfo,
) -> Manifest:
    """Returns the manifest of an artifact that was built and has not run.

    Args:
        config: What was asked for.
        source: The model, as it was read.
        model: The same over flat tensors, with what its graph takes for granted.
        inputs: Its inputs.
        reference: What it answers.
        reduction: What was put into it; None where nothing was.
        tuning: Which forms were chosen by measurement; None without tuning.
        schedule: The number of tokens at each attention.
        runtime: What built the artifact.
    """
    checks = checks_of(model)
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
        gates={},  # settled when every step has been held to its own
        source={"kind": source.kind, "location": source.location, "sha256": source.sha256},
        preprocessing=source.preprocessing.to_json() if source.preprocessing else None,
        files={},
        reduction=None if reduction is None else reduction.for_manifest(),
        forms=None if tuning is None else tuning.for_manifest(),
        checks=checks,
        constant_inputs=constants_of(model),
    )
