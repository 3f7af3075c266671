"""Traces the branches that code takes on the samples, for the artifact to select among."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from tokexport.exporter.capture.dynamic_sizes import Padding
from tokexport.exporter.capture.trace import capture_padded
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.errors import ModelNotSupportedError
from tokexport.exporter.inputs.batches import Batches
from tokexport.graph_passes.errors import TokenCountError
from tokexport.graph_passes.torch_passes.canonicalize.drop_random import DropRandom
from tokexport.graph_passes.torch_passes.canonicalize.select_paths import Path, SelectPaths
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module, expose_values
from tokexport.graph_passes.torch_passes.graph.editor import Editor
from tokexport.graph_passes.torch_passes.graph.pass_runner import run_passes
from tokexport.runtimes.arrays import Array

#: The most paths through branches: every run of the artifact computes all of them.
MOST_PATHS = 4


def with_paths(
    model: FlatModel,
    batches: Batches,
    caps: Sequence[int],
    program: ExportedProgram,
    padding: Padding,
    drop_noise: bool,
) -> tuple[ExportedProgram, Padding]:
    """Returns a padded graph that also takes the branches that other samples take.

    Args:
        model: The model as given.
        batches: All samples.
        caps: The caps.
        program: The padded graph of the first batch.
        padding: What was padded in it.
        drop_noise: Whether every random draw becomes its mean.
    """
    if len(batches) == 1 or all(check.kind != "branch" for check in padding.checks):
        return program, padding
    paths = [Path(program, padding.selections, padding.checks)]
    taken = [_takes(paths[0], batches, drop_noise)]
    tried: set[int] = set()
    while len(paths) < MOST_PATHS:
        nowhere = np.flatnonzero(~np.any(taken, axis=0)).tolist()
        left = [at for at in nowhere if at not in tried]
        if not left:
            break
        tried.add(left[0])
        example = {name: batches.arrays[name][left[0]] for name in batches.names}
        try:
            other, more = capture_padded(model, tensors_of(example), caps)
        except ModelNotSupportedError:
            continue  # that path cannot be padded: its inputs are refused
        if any(check.kind == "branch" for check in more.checks):
            paths.append(Path(other, more.selections, more.checks))
            taken.append(_takes(paths[-1], batches, drop_noise))
    if len(paths) == 1:
        return program, padding
    joined = SelectPaths(paths[0], paths[1:])
    try:
        run_passes(program, (joined,), "capture")
    except TokenCountError:
        return capture_padded(model, tensors_of(next(iter(batches))), caps)
    return program, Padding(joined.selections, joined.checks)


def without_draws(program: ExportedProgram) -> GraphModule:
    """Returns a program as a module, with means in place of its random draws."""
    module = as_graph_module(program)
    DropRandom().call(Editor(module.graph))
    module.recompile()
    return module


def _takes(path: Path, batches: Batches, drop_noise: bool) -> Array:
    """Returns on which batches (batches,) all branches of a path are taken."""
    names = [check.holds.name for check in path.checks if check.kind == "branch"]
    graph = expose_values(
        without_draws(path.program) if drop_noise else as_graph_module(path.program), names
    )
    with torch.no_grad():
        rows = [all(bool(one) for one in graph(*tensors_of(batch))) for batch in batches]
    return np.array(rows)
