"""Runs the graph that a stage left, on the batches of the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch.fx import GraphModule

from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.torch_warnings import torch_warnings_silenced
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.runner import WorkerRunner
from tokexport.graph_passes.onnx_passes.precision.emulate_half_in_fp32 import EmulateHalfInFp32
from tokexport.graph_passes.pipelines import Arithmetic
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.runner import Runner


def run_graph(module: GraphModule, batches: Batches, names: tuple[str, ...]) -> dict[str, Array]:
    """Runs an unlifted graph in eager torch; returns (batches, …) by the result's name."""
    with torch_warnings_silenced(), torch.no_grad():
        rows = [module(*tensors_of(batch)) for batch in batches]
    return {
        name: np.stack([row[position].detach().numpy() for row in rows])
        for position, name in enumerate(names)
    }


def run_onnx(path: Path, batches: Batches) -> dict[str, Array]:
    """Runs an ONNX file in ONNX Runtime on the CPU; returns (batches, …) by output name.

    The bodies of the functions run: the artifact's own stage holds the native kernels to them.
    """
    with WorkerRunner(Opening(path, native=False)) as runner:
        return run_artifact(runner, batches)


def run_lowered(path: Path, batches: Batches, arithmetic: Arithmetic) -> dict[str, Array]:
    """Runs a lowered ONNX file in ONNX Runtime; returns (batches, …) by output name.

    It has few kernels for half precisions: each operator of one is computed in float32 then, on
    operands and to a result in half.
    """
    if arithmetic.precision not in ("fp16", "bf16"):
        return run_onnx(path, batches)
    with scratch_folder() as folder:
        widened = folder / path.name
        save_onnx(EmulateHalfInFp32()(ir.load(path)).model, widened)
        return run_onnx(widened, batches)


def run_artifact(runner: Runner, batches: Batches) -> dict[str, Array]:
    """Runs every batch; returns (batches, …) by output name."""
    rows = [runner.run(batch) for batch in batches]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
