"""Measures how far a bundle decides as its source does in eager."""

from __future__ import annotations

from pathlib import Path

from tokexport.exporter.capture.random_ops import capture_without_draws
from tokexport.exporter.comparison.decision_agreement import agreement_over_all, agreements
from tokexport.exporter.comparison.own_replay import (
    CannotReplayError,
    DecidedGraph,
    own_replay,
    renamed,
)
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.errors import ModelNotSupportedError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.ties.verdict import TieSearch
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.errors import GraphError
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module, make_replay_graph
from tokexport.runtimes.signatures import trusted_manifest


def decision_agreement(
    bundle: Path, model: FlatModel, batches: Batches, threads: int | None = None
) -> float | None:
    """Returns the share of positions and truth values that a bundle decides as eager does.

    Args:
        bundle: The bundle's folder.
        model: Its source.
        batches: The inputs, under the names of the source.
        threads: The most threads; None leaves it to the runtime.

    Returns:
        The share; None where nothing is decided, or the bundle does not show its decisions.
    """
    ops.register()
    manifest = trusted_manifest(bundle)
    names = tuple(spec.name for spec in manifest.computed)
    try:
        program = capture_without_draws(model, batches)
        captured = as_graph_module(program)
        rewritten = pipelines.rewrite(program).program
        replay = make_replay_graph(as_graph_module(rewritten), batches.names, names)
        if not replay.decisions:
            return None
        search = TieSearch(captured, batches, lambda found, rows: [True] * len(rows), 0.0)
        if search.lost(replay):
            return None
        eager = search.eager_values(replay, range(len(batches)))
        with scratch_folder() as folder:
            graph = DecidedGraph(replay, renamed(rewritten, names))
            free = own_replay(bundle, manifest, graph, batches, folder, threads).free()
    except (CannotReplayError, ModelNotSupportedError, GraphError):
        return None
    return agreement_over_all(agreements(replay, eager, free, ()))
