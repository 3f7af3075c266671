"""Models compiled once for ONNX Runtime, from whose emitted graph tests build for other targets.

They are held to eager on an input that the compile did not see, as the compile holds them on its
own: an output beyond its gate fails, unless the same way, told what eager decided, gives outputs
within the gates and every decision that falls differently is a near-tie (``exporter.ties``).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from helpers.json_schemas import check_bundle
from torch import Tensor, nn

import tokexport
from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.build import run_stage
from tokexport.exporter.build.artifact import build
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.compile import CompileResult
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.eager.reference import run_reference, tensors_of
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.gates import FP32_FLOOR
from tokexport.exporter.parity.measured_gates import MeasuredGates, measured_gates
from tokexport.exporter.parity.proof import Proof, ReplayResult
from tokexport.exporter.source.in_memory import split_arguments
from tokexport.exporter.ties.replay_stages import ReplayArtifacts, StageReplay
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.openvino.runner import OpenVinoRunner
from tokexport.runtimes.ort.runner import OrtRunner
from tokexport.runtimes.tolerances.neighbourhoods import within_local_floor


class NearTieWarning(UserWarning):
    """A near-tie fell the other way on the input that the compile did not see."""


@dataclass(frozen=True)
class Compiled:
    """A model and what compiling it for ONNX Runtime left.

    Attributes:
        result: The compile's result.
        emitted: The ONNX model before any target's lowering.
        model: The model.
        unseen: One batch that the compile did not see.
        wanted: The answers to it in eager, (1, …) by name.
    """

    result: CompileResult
    emitted: Path
    model: FlatModel
    unseen: Batches
    wanted: dict[str, Array]

    @cached_property
    def measured(self) -> MeasuredGates:
        """How far answers to the unseen batch, and the numbers that are decided on, may be off."""
        captured = as_graph_module(capture(self.model, tensors_of(next(iter(self.unseen)))))
        samples = len(self.unseen.arrays[self.unseen.names[0]][0])
        return measured_gates(captured, self.unseen, self.wanted, samples)


def compile_for_ort(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...] | dict[str, Tensor],
    folder: Path,
    images: Array | None = None,
) -> Compiled:
    """Compiles a model; ``images`` is what it is held to eager on where it has one input."""
    result = tokexport.compile(
        model, example, output=folder / "bundle", keep_stages=True, timed=False
    )
    check_bundle(result.bundle)
    args, kwargs = split_arguments(example)
    flat = FlatModel(model, call_spec(model, args or (), kwargs))
    drawn = [one.numpy() for one in draw(flat.spec.examples, 7)] if images is None else [images]
    arrays = {name: one[None] for name, one in zip(flat.spec.names, drawn, strict=True)}
    unseen = Batches(flat.spec.names, arrays, len(drawn[0]), None, "")
    emitted = folder / "bundle.stages" / "emitted" / "model.onnx"
    wanted = run_reference(flat, unseen).outputs
    return Compiled(result, emitted, flat, unseen, wanted)


def draw(examples: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Draws inputs of the shapes of examples; whole numbers lie between the least and the most."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(one.shape, generator=generator)
        if one.is_floating_point()
        else torch.randint(int(one.min()), int(one.max()) + 1, one.shape, generator=generator)
        for one in examples
    )


def assert_agrees(
    runner: Runner, model: Compiled, target: str = "ort", stage: str = "artifact"
) -> None:
    """Holds a runner to eager on the input that the compile did not see.

    What rounding does there is measured for what lies beyond the least that is ever allowed.

    Args:
        runner: Runs what the way to a target left.
        model: The model.
        target: The target.
        stage: How far that way went: ``lowered`` or ``artifact``.

    Raises:
        ParityError: An output lies outside its gate, and no near-tie explains it.
    """
    found = run_stage.run_artifact(runner, model.unseen)
    assert set(found) == set(model.wanted)
    if all(_agrees(array[0], found[name][0]) for name, array in model.wanted.items()):
        return
    gates = model.measured.fp32
    for name, array in model.wanted.items():  # they allow what rounding does, and little more
        allowed = gates[name].allowed
        # The one logit of an image and a text may be what is left of numbers that cancel.
        least = max(1e-4 * (np.abs(array).max() or 1), 1e-5 if array.size == 1 else 0.0)
        assert allowed is None or np.median(allowed) < least
    proof = Proof(model.wanted, gates, scores={"": model.measured.scores})
    with tempfile.TemporaryDirectory() as folder:
        proof.check(
            stage, found, lambda failed: _replay(model, target, stage, proof, folder, failed)
        )
    ties = proof.stages[-1].ties
    if ties is not None:
        warnings.warn(
            f"{target}, {stage}: {ties.flips} choices differ from eager's, by margins of at most "
            f"{ties.margin:.1e} where the scores are off by {ties.score_error:.1e}: "
            f"{'; '.join(ties.decisions)}",
            NearTieWarning,
            stacklevel=2,
        )


def _agrees(wanted: Array, found: Array) -> bool:
    """Tells whether an output lies within what every gate in fp32 allows."""
    if wanted.dtype != found.dtype or wanted.shape != found.shape:
        return False
    if wanted.dtype.kind != "f":
        return np.array_equal(wanted, found)
    return within_local_floor(wanted, found, FP32_FLOOR)


def assert_builds(model: Compiled, target: str, folder: Path) -> None:
    """Lowers and builds a model for another target; what can run here must agree with eager."""
    lowered = folder / "lowered.onnx"
    save_onnx(pipelines.lower(ir.load(model.emitted), pipelines.lowering(target)).model, lowered)
    with OrtRunner.from_file(lowered) as runner:
        assert_agrees(runner, model, target, "lowered")
    build(BACKENDS[target], lowered, folder)
    if target == "openvino":
        with OpenVinoRunner.from_file(folder / "model.xml") as runner:
            assert_agrees(runner, model, target)
    else:
        assert (folder / "model.engine").stat().st_size > 10_000


def _replay(
    model: Compiled, target: str, stage: str, proof: Proof, folder: str, failed: Sequence[int]
) -> ReplayResult:
    """Goes the way to a target anew, told what eager decided about the unseen input."""
    program = capture(model.model, tensors_of(next(iter(model.unseen))))
    captured = as_graph_module(program)
    rewritten = pipelines.rewrite(program).program
    names = model.unseen.names, tuple(model.wanted)
    way = ReplayArtifacts(rewritten, *names, BACKENDS[target], "fp32", Path(folder) / "replay")
    replay = StageReplay(captured, way, model.unseen, proof)
    if stage == "lowered":
        return replay.lowered(failed)
    manifest = replace(
        read_manifest(model.result.bundle), target=target, artifact=BACKENDS[target].artifact
    )
    return replay.artifact(manifest, failed)
