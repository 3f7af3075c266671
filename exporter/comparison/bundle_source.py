"""Holds a source to the shape of a bundle: its options, what it takes and what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokexport.exporter.comparison.reference_batches import values_of
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.errors import OtherModelError
from tokexport.exporter.stages.traced_stages import Answered
from tokexport.runtimes.bundle.manifest import Manifest, TensorSpec


def config_of(
    manifest: Manifest, output: Path, inputs: Path | None, samples: int | None, threads: int | None
) -> CompileConfig:
    """Returns the options that the bundle was compiled with, as far as they shape its graph."""
    options: dict[str, Any] = manifest.options or {}  # bundles made before have none
    first = manifest.inputs[0].shape if manifest.inputs else ()
    return CompileConfig(
        target=manifest.target,
        output=output,
        precision=manifest.precision,
        inputs=inputs,
        samples=samples,
        batch=first[0] if first else None,
        constants=values_of(manifest.constant_inputs) or None,
        reduce=None if manifest.reduction is None else manifest.reduction["recipe"],
        timed=False,
        threads=threads,
        token_cap=options.get("token_cap"),
        drop_noise=options.get("drop_noise", False),
        quantization=options.get("quantization"),
        weight_bits=options.get("weight_bits"),
        atol=options.get("atol"),
        embed_preprocess=options.get("embed_preprocess"),
    )


def require_same_inputs(inputs: tuple[TensorSpec, ...], manifest: Manifest, bundle: Path) -> None:
    """Refuses a source of other inputs than the bundle's."""
    if inputs != manifest.inputs:
        raise OtherModelError(
            "The source takes something else than the bundle.",
            where=f"{bundle}: {'; '.join(map(str, manifest.inputs))}; "
            f"the source: {'; '.join(map(str, inputs))}",
            fix="Pass the source that the bundle was compiled from.",
        )


def require_same_outputs(answered: Answered, manifest: Manifest, bundle: Path) -> None:
    """Refuses a source of other outputs than the bundle's."""
    its = {
        TensorSpec(name, array.shape[1:], str(array.dtype))
        for name, array in answered.reference.outputs.items()
    }
    if its != {*manifest.computed}:
        raise OtherModelError(
            "The source gives something else than the bundle.",
            where=f"{bundle}: {'; '.join(map(str, manifest.computed))}; "
            f"the source: {'; '.join(sorted(map(str, its)))}",
            fix="Pass the source that the bundle was compiled from, with its reduction.",
        )
