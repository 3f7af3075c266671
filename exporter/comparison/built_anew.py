"""Says whether an artifact that is built now answers bit by bit as that of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from tokexport.exporter.build import run_stage
from tokexport.exporter.build.artifact import build
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.stages.artifact_stages import Lowered
from tokexport.exporter.stages.run import CompileRun
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.worker.runner import open_in_worker
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import Manifest


def answers_as_built_now(
    run: CompileRun,
    lowered: Lowered,
    manifest: Manifest,
    batches: Batches,
    found: Mapping[str, Array],
) -> bool:
    """Builds the artifact of a source here, and compares its answers with those of a bundle.

    Args:
        run: The compile of the source.
        lowered: Its lowered graph.
        manifest: That of the bundle.
        batches: What the bundle ran on.
        found: What it gave, (batches, …) by name.
    """
    with scratch_folder() as folder:
        made = Path(folder) / "built"
        made.mkdir()
        runtime = build(run.config.backend, lowered.path, made, run.config.precision, batches)
        described = replace(manifest, runtime=runtime)
        with open_in_worker(
            made, described, onnx=lowered.path, threads=run.config.threads
        ) as runner:
            now = run_stage.run_artifact(runner, batches)
    return found.keys() == now.keys() and all(
        np.array_equal(found[name], now[name], equal_nan=found[name].dtype.kind == "f")
        for name in found
    )
