"""Replays stages that failed: runs them with eager's decisions as inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from tokexport.exporter.backends.backend import Backend
from tokexport.exporter.backends.known import REFERENCE
from tokexport.exporter.build import run_stage
from tokexport.exporter.build.artifact import build
from tokexport.exporter.build.emit import emit
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.proof import Proof, ReplayResult, ReplayStage
from tokexport.exporter.ties.verdict import RunReplay, TieSearch, selected, tie_search
from tokexport.exporter.worker.runner import open_in_worker
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.onnx_passes.every_target.choose_forms import Forms
from tokexport.graph_passes.pipelines import Arithmetic
from tokexport.graph_passes.torch_passes.graph.decisions import (
    ReplayGraph,
    as_graph_module,
    make_replay_graph,
)
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import Manifest, TensorSpec
from tokexport.runtimes.bundle.runner import Runner


class ReplayArtifacts:
    """The graphs and files of a replay: the rewritten program with its decisions as inputs.

    Args:
        rewritten: The program after the passes.
        inputs: The names of its inputs.
        outputs: The names of its outputs.
        backend: The target of the compile.
        precision: The precision of it.
        folder: Where files go; it is made with the first of them.

    Attributes:
        forms: The forms that the token operators are lowered to, set once they are chosen.
    """

    def __init__(
        self,
        rewritten: ExportedProgram,
        inputs: Sequence[str],
        outputs: Sequence[str],
        backend: Backend,
        precision: str,
        folder: Path,
    ) -> None:
        self._rewritten = rewritten
        self._names = tuple(inputs), tuple(outputs)
        self._folder = folder
        self.backend = backend
        self.arithmetic = Arithmetic(precision)
        self.forms: Forms = {}

    @cached_property
    def graph(self) -> ReplayGraph:
        """The graph whose decisions are inputs."""
        return make_replay_graph(as_graph_module(self._rewritten), *self._names)

    @property
    def results(self) -> tuple[str, ...]:
        """The names of its outputs and of the values that it exposes."""
        return (*self.graph.outputs, *self.graph.exposed)

    @cached_property
    def emitted(self) -> Path:
        """Its ONNX file."""
        module = self.graph.module
        inputs = (node.meta["val"] for node in module.graph.find_nodes(op="placeholder"))
        example = [torch.zeros(value.shape, dtype=value.dtype) for value in inputs]
        names = (*self.graph.inputs, *self.graph.decision_inputs)
        return self._saved("emitted", emit(capture(module, example), names, self.results))

    @cached_property
    def lowered(self) -> Path:
        """Its lowered ONNX file."""
        emitted = ir.load(self.emitted)
        passes = self.backend.lowering(self.arithmetic, self.forms)
        return self._saved("lowered", pipelines.lower(emitted, passes).model)

    def folder_for(self, stage: str) -> Path:
        """Makes a folder for an artifact: STAGE, or STAGE-2 where that is taken."""
        name, count = stage.replace(" ", "-"), 1
        folder = self._folder / name
        while folder.exists():
            count += 1
            folder = self._folder / f"{name}-{count}"
        folder.mkdir(parents=True)
        return folder

    def _saved(self, stage: str, model: ir.Model) -> Path:
        folder = self._folder / stage
        folder.mkdir(parents=True)
        path = folder / REFERENCE.artifact
        save_onnx(model, path)
        return path


class StageReplay:
    """Replays stages on the batches that they failed on; a method a stage.

    Args:
        captured: The traced model, unlifted, before any pass.
        artifacts: The graphs and files with decisions as inputs.
        batches: All batches that the proof is about.
        proof: Compares the stages.
    """

    def __init__(
        self, captured: GraphModule, artifacts: ReplayArtifacts, batches: Batches, proof: Proof
    ) -> None:
        self._artifacts = artifacts
        self._batches = batches
        self._captured = captured
        self._proof = proof

    def for_batches(self, batches: Batches, proof: Proof) -> StageReplay:
        """Returns the same replay for other batches."""
        return StageReplay(self._captured, self._artifacts, batches, proof)

    def at(self, manifest: Manifest, stage: str, batches: Batches, proof: Proof) -> ReplayStage:
        """Returns the replay of a stage on other batches.

        Args:
            manifest: That of the artifact.
            stage: The stage.
            batches: The batches.
            proof: Compares the stage.
        """
        replays = self.for_batches(batches, proof)
        stages: dict[str, ReplayStage] = {
            "captured": replays.captured,
            "rewritten": replays.rewritten,
            "onnx": replays.onnx,
            "lowered": replays.lowered,
            "artifact": partial(replays.artifact, manifest),
        }
        return stages[stage]

    def captured(self, failed: Sequence[int]) -> ReplayResult:
        """Replays the traced graph."""
        replay = make_replay_graph(
            self._captured, self._batches.names, self._artifacts.graph.outputs
        )
        return self.search("captured").judge(
            replay,
            lambda batches: run_stage.run_graph(
                replay.module, batches, (*replay.outputs, *replay.exposed)
            ),
            failed,
        )

    def rewritten(self, failed: Sequence[int]) -> ReplayResult:
        """Replays the rewritten graph."""
        return self._replay_stage(
            "rewritten",
            lambda batches: run_stage.run_graph(
                self._artifacts.graph.module, batches, self._artifacts.results
            ),
            failed,
        )

    def onnx(self, failed: Sequence[int]) -> ReplayResult:
        """Replays the ONNX."""
        return self._replay_stage(
            "onnx", lambda batches: run_stage.run_onnx(self._artifacts.emitted, batches), failed
        )

    def lowered(self, failed: Sequence[int]) -> ReplayResult:
        """Replays the lowered ONNX."""
        return self._replay_stage("lowered", self._run_lowered, failed)

    def artifact(
        self, manifest: Manifest, failed: Sequence[int], native: bool = True
    ) -> ReplayResult:
        """Replays an artifact that is built like the one that failed.

        Args:
            manifest: That of the artifact that failed.
            failed: The batches it failed on.
            native: Whether it failed with the native kernels in it.
        """
        stage = "artifact" if native else "without kernels"
        if not self._artifacts.graph.decisions:
            return ReplayResult({}, None)
        with self._replay_artifact(manifest, stage) as runner:
            return self._replay_stage(stage, partial(run_stage.run_artifact, runner), failed)

    @property
    def graph(self) -> ReplayGraph:
        """The rewritten graph whose decisions are inputs."""
        return self._artifacts.graph

    def given(self, run: RunReplay, failed: Sequence[int]) -> ReplayResult:
        """Replays an artifact that takes decisions already.

        Args:
            run: Runs it.
            failed: The batches it failed on.
        """
        if not self._artifacts.graph.decisions:
            return ReplayResult({}, None)
        return self._replay_stage("artifact", run, failed)

    def own_decisions(self, manifest: Manifest | None, rows: Sequence[int]) -> Mapping[str, Array]:
        """Returns eager's outputs of the rewritten graph with the last stage's own decisions.

        Args:
            manifest: That of the artifact; None where the lowered ONNX is the last stage.
            rows: The batches.

        Returns:
            Its outputs (rows, …) by name; none where its decisions do not settle.
        """
        if manifest is None:
            return self._own("artifact", self._run_lowered, rows)
        with self._replay_artifact(manifest, "artifact") as runner:
            return self._own("artifact", partial(run_stage.run_artifact, runner), rows)

    def _own(self, stage: str, run: RunReplay, rows: Sequence[int]) -> Mapping[str, Array]:
        """Returns eager's outputs of the rewritten graph with a stage's own decisions.

        The stage gets its own decisions as inputs until they no longer change: the first run
        settles the first decision, and each further run one more.
        """
        replay = self._artifacts.graph
        eager = self.search(stage).eager_values(replay, rows)
        given = {name: eager[name] for name in replay.decision_inputs}
        for _ in range(len(replay.decisions) + 2):
            found = run(selected(self._batches, rows, given))
            own = {
                name: found[decision.own[position]]
                for decision in replay.decisions
                for position, name in decision.replayed.items()
            }
            if all(_are_equal(own[name], given[name]) for name in given):
                batches = selected(self._batches, rows, given)
                answers = run_stage.run_graph(replay.module, batches, self._artifacts.results)
                return {name: answers[name] for name in replay.outputs}
            given = own
        return {}

    def _run_lowered(self, batches: Batches) -> dict[str, Array]:
        return run_stage.run_lowered(self._artifacts.lowered, batches, self._artifacts.arithmetic)

    @contextmanager
    def _replay_artifact(self, manifest: Manifest, stage: str) -> Iterator[Runner]:
        """Opens an artifact that takes decisions."""
        artifacts = self._artifacts
        names = (*self._batches.names, *artifacts.graph.decision_inputs)
        folder = artifacts.folder_for(stage)
        replay = replace(
            manifest,
            runtime=build(
                artifacts.backend, artifacts.lowered, folder, artifacts.arithmetic.precision
            ),
            inputs=tuple(_specs(names, artifacts.graph.module, "placeholder")),
            outputs=tuple(_specs(artifacts.results, artifacts.graph.module, "output")),
            checks=None,  # their output is one of those
        )
        is_native = stage == "artifact"
        with open_in_worker(folder, replay, onnx=artifacts.lowered, native=is_native) as runner:
            yield runner

    def search(self, stage: str) -> TieSearch:
        """Returns the search for ties of a stage."""
        precision = self._artifacts.arithmetic.precision
        return tie_search(self._captured, self._batches, self._proof, stage, precision)

    def _replay_stage(self, stage: str, run: RunReplay, failed: Sequence[int]) -> ReplayResult:
        """Replays a stage, and in fp32 also runs eager on the stage's own decisions.

        In a half precision a replay rounds other numbers than the first run, and may decide
        differently.
        """
        search = self.search(stage)
        answer = search.judge(self._artifacts.graph, run, failed)
        if answer.ties is None or search.half:
            return answer
        return replace(answer, own=self._own(stage, run, failed))


def _are_equal(one: Array, other: Array) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _specs(names: Sequence[str], module: GraphModule, op: str) -> Iterator[TensorSpec]:
    """Yields the specs of the inputs, or of the results, of an unlifted graph."""
    nodes = module.graph.find_nodes(op=op)
    for name, node in zip(names, nodes if op == "placeholder" else nodes[0].args[0], strict=True):
        value = node.meta["val"]
        dtype = str(value.dtype).removeprefix("torch.")
        yield TensorSpec(name, tuple(value.shape), dtype)
