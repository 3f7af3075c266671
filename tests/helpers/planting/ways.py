"""Goes a model's way once, and keeps what every stage left, for faults to be planted in copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from torch import nn
from torch.fx import GraphModule

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.build import run_stage
from tokexport.exporter.build.artifact import build
from tokexport.exporter.build.emit import emit
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.eager.example_inputs import prepare
from tokexport.exporter.eager.reference import Reference, run_reference, tensors_of
from tokexport.exporter.edges.edge_proof import EdgeProof
from tokexport.exporter.edges.whole_number_ranges import Reach, RunBatches
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.measured_gates import MeasuredGates, measured_gates
from tokexport.exporter.parity.proof import Proof, ReplayStage
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.exporter.ties.replay_stages import ReplayArtifacts
from tokexport.exporter.ties.verdict import RunReplay, tie_search
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.runner import WorkerRunner
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.graph.decisions import ReplayGraph, as_graph_module
from tokexport.runtimes.arrays import Array

#: The targets that run here.
TARGETS: Final = ("ort", "openvino")


@dataclass(frozen=True)
class Asked:
    """What some stages are held to.

    Attributes:
        batches: The inputs.
        reference: What eager answers.
        gates: The gates that were measured on them.
    """

    batches: Batches
    reference: Reference
    gates: MeasuredGates

    @property
    def outputs(self) -> dict[str, Array]:
        """The tensors that eager answers, (batches, …) by name."""
        return self.reference.outputs

    def proof(self, samples: int, narrowed: tuple[str, ...] = ()) -> Proof:
        """Returns a proof about them, with no stage held yet."""
        by_stage = {"captured": self.gates.captured} | dict.fromkeys(narrowed, self.gates.narrowed)
        kinds, scores = self.batches.kinds, self.gates.scores_by_stage(narrowed)
        return Proof(self.outputs, self.gates.fp32, by_stage, narrowed, samples, kinds, scores)


class Way:
    """What a model becomes, from eager to the artifacts of both targets.

    Args:
        model: The model.
        example: Its inputs.
        folder: Where the files go.
        seed: The seed of the inputs that it is proven on.
        batch: How many samples a batch has; None for as many as the example.
    """

    def __init__(
        self, model: nn.Module, example: Any, folder: Path, seed: int = 0, batch: int | None = None
    ) -> None:
        ops.register()
        self.folder, self._count = folder, 0
        self.config = CompileConfig(target="ort", output=folder / "bundle", seed=seed, batch=batch)
        self._source = source_in_memory(model, example)
        self.flat, self.specs, batches = prepare(self._source, self.config)
        self.size = self.specs[0].shape[0] if self.specs[0].shape else 1
        program = capture(self.flat, tensors_of(next(iter(batches))))
        self.captured = as_graph_module(program)
        self.samples = self.asked(batches)
        self.names = tuple(self.samples.outputs)
        self.program = pipelines.rewrite(program).program
        self.rewritten = as_graph_module(self.program)
        self.emitted = self._saved("emitted", emit(self.program, self.flat.spec.names, self.names))
        self._lowered: dict[str, Path] = {}
        self._replay: dict[str, ReplayArtifacts] = {}

    def asked(self, batches: Batches, precision: str = "fp32") -> Asked:
        """Runs eager on some batches, and measures what the stages are held to there."""
        reference = run_reference(self.flat, batches, twice=False)
        gates = measured_gates(self.captured, batches, reference.outputs, self.size, precision)
        return Asked(batches, reference, gates)

    def drawn(self, seed: int) -> Batches:
        """Returns the batches that a compile draws under another seed."""
        return prepare(self._source, replace(self.config, seed=seed))[2]

    @cached_property
    def others(self) -> Asked:
        """More inputs, of two other seeds, which nothing is held to: what a fault does to them."""
        one, two = self.drawn(101), self.drawn(102)
        arrays = {name: [*one.arrays[name], *two.arrays[name]] for name in one.names}
        joined = {name: np.stack(rows) for name, rows in arrays.items()}
        return self.asked(replace(one, arrays=joined, samples=0, kinds=one.kinds * 2))

    @cached_property
    def edges(self) -> Edges:
        """The edges, whose gates are measured once."""
        return self.edges_of(self.captured)

    def edges_of(self, captured: GraphModule) -> Edges:
        """Returns the edges as a compile makes them from a traced graph."""
        given = (self.specs, self.samples.batches, self.samples.reference, self.config, None)
        return Edges(self.flat, captured, *given)

    def lowered(self, target: str) -> Path:
        """Returns the lowered ONNX file of a target."""
        if target not in self._lowered:
            model = pipelines.lower(ir.load(self.emitted), pipelines.lowering(target)).model
            self._lowered[target] = self._saved(f"lowered-{target}", model)
        return self._lowered[target]

    def built(self, target: str, lowered: Path, precision: str = "fp32") -> Path:
        """Builds an artifact from a lowered file, and returns its path."""
        folder = self.new_folder("built")
        build(BACKENDS[target], lowered, folder, precision)
        return folder / BACKENDS[target].artifact

    def replay(self, target: str = "ort") -> ReplayArtifacts:
        """Returns the same way, told how to decide."""
        if target not in self._replay:
            names = (self.samples.batches.names, self.names)
            folder = self.folder / f"told-{target}"
            self._replay[target] = ReplayArtifacts(
                self.program, *names, BACKENDS[target], "fp32", folder
            )
        return self._replay[target]

    def teller(
        self,
        stage: str,
        asked: Batches,
        proof: Proof,
        graph: ReplayGraph,
        run: RunReplay,
        precision: str = "fp32",
    ) -> ReplayStage:
        """Returns what runs a stage again, with given decisions, as ``replay_stages`` does.

        Args:
            stage: The stage.
            asked: The batches that the proof is about.
            proof: What the stage is held to.
            graph: The graph whose decisions are inputs.
            run: Runs what the stage makes of it.
            precision: The precision of the stages in a reduced one.
        """
        search = tie_search(self.captured, asked, proof, stage, precision)
        return lambda failed: search.judge(graph, run, failed)

    def new_folder(self, name: str) -> Path:
        """Makes a folder."""
        self._count += 1
        folder = self.folder / f"{name}-{self._count}"
        folder.mkdir()
        return folder

    def _saved(self, name: str, model: ir.Model) -> Path:
        folder = self.folder / name
        folder.mkdir()
        path = folder / BACKENDS["ort"].artifact
        save_onnx(model, path)
        return path


class Edges(EdgeProof):
    """Edges whose gates are measured once, and that are floating alone: nothing climbs."""

    def proof(self) -> tuple[Proof, Batches]:
        """Returns a new proof about them, and their batches."""
        measured = self._measured(self._outputs, self._batches)
        return self._proof(measured, self._outputs, self._batches), self._batches

    @property
    def any(self) -> bool:
        """Whether there are some."""
        return bool(self._outputs)

    def _measured(self, outputs: Mapping[str, Array], batches: Batches) -> MeasuredGates:
        if not hasattr(self, "_once"):
            self._once = super()._measured(outputs, batches)
        return self._once

    def _climb(self, run: RunBatches) -> dict[str, Reach]:
        return {}


def run_file(path: Path, batches: Batches, native: bool = True, precision: str = "fp32") -> Any:
    """Runs an artifact; returns (batches, …) by output name."""
    with WorkerRunner(Opening(path, precision=precision, native=native)) as runner:
        return run_stage.run_artifact(runner, batches)
