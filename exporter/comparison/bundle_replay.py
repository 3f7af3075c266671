"""Replays the artifact of a bundle in the compile of its source, and compares its decisions."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tokexport.exporter.comparison.decision_agreement import DecisionAgreement, agreements
from tokexport.exporter.comparison.own_replay import (
    CannotReplayError,
    DecidedGraph,
    own_replay,
    renamed,
)
from tokexport.exporter.parity.proof import ReplayStage
from tokexport.exporter.stages.artifact_stages import Lowered
from tokexport.exporter.stages.run import CompileRun
from tokexport.exporter.stages.traced_stages import Answered, Captured
from tokexport.exporter.ties.verdict import selected
from tokexport.runtimes.bundle.manifest import Manifest


@dataclass(frozen=True)
class BundleReplay:
    """How the artifact of a bundle decides.

    Attributes:
        replay: Replays it where it leaves its gate.
        decisions: How each decision falls in it.
        why_not: Why an artifact that is built anew is replayed; '' where its own is.
    """

    replay: ReplayStage
    decisions: tuple[DecisionAgreement, ...] = ()
    why_not: str = ""


def bundle_replay(
    run: CompileRun,
    bundle: Path,
    manifest: Manifest,
    answered: Answered,
    captured: Captured,
    lowered: Lowered,
    *,
    native: bool = True,
) -> BundleReplay:
    """Runs the bundle's own artifact by itself and with eager's decisions as inputs.

    Args:
        run: The compile of the source.
        bundle: The bundle's folder; its files were checked.
        manifest: What it holds.
        answered: The model, its samples and eager's outputs.
        captured: The traced model, rewritten since.
        lowered: Its lowered graph.
        native: Whether the native kernels run.
    """
    stages, batches = lowered.stages.replay, answered.batches
    anew = BundleReplay(partial(stages.artifact, manifest, native=native))
    if not stages.graph.decisions:
        return anew
    graph = DecidedGraph(stages.graph, renamed(captured.program, answered.names))
    folder, threads = Path(tempfile.mkdtemp(dir=run.kept.path)), run.config.threads
    try:
        with run.stage("decisions"):
            own = own_replay(bundle, manifest, graph, batches, folder, threads, native=native)
            search, rows = stages.search("artifact"), range(len(batches))
            if lost := search.lost(stages.graph):
                raise CannotReplayError(lost)
            eager = search.eager_values(stages.graph, rows)
            decided = {name: eager[name] for name in stages.graph.decision_inputs}
            found = own.run(selected(batches, rows, decided))
            differences = search.differences(stages.graph, eager, found, rows)
            quantised = manifest.precision == "int8"
            free = own.free()
            decisions = agreements(stages.graph, eager, free, differences, quantised=quantised)
    except CannotReplayError as error:
        return replace(anew, why_not=str(error))
    return BundleReplay(partial(stages.given, own.run), decisions)
