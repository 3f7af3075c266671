"""Replays the very artifact of a bundle: eager's decisions become inputs of its own file.

A match of ToMe that ONNX Runtime computes in one kernel with the merge and the norm behind it shows
no decision. There the kernel is taken apart into the kernels of the three; what that gives has to
be what the artifact gives. Scores are computed from what the artifact shows before them, by the
operators of the rewritten graph.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.graph_values.given_values import computed_values
from tokexport.exporter.graph_values.local_errors import FLOOR, distance
from tokexport.exporter.graph_values.shown_values import Artifact, OnnxArtifact, artifact_at
from tokexport.exporter.graph_values.suspect import Values
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.torch_warnings import torch_warnings_silenced
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.torch_passes.graph.decision_kinds import DecisionKind
from tokexport.graph_passes.torch_passes.graph.decisions import ReplayGraph, as_graph_module
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import Manifest, TensorSpec
from tokexport.runtimes.errors import RuntimesError

#: The kernel that decides, merges and normalises in one.
_DECIDES_INSIDE: Final = "cosine_merge_norm"
#: How far what is read may be from a score, as a share of it, and still be it.
_FORM: Final = 0.1
#: The operator in it that decides.
_MATCH: Final = "cosine_match"


class CannotReplayError(Exception):
    """An artifact does not show or take its decisions; the text says why, a clause."""


@dataclass(frozen=True)
class DecidedGraph:
    """The rewritten graph of a source, and what its values are called in ONNX.

    Attributes:
        replay: The graph whose decisions are inputs.
        renamed: The outputs of the model, by the name of their value in the graph.
    """

    replay: ReplayGraph
    renamed: Mapping[str, str]

    def exposed(self) -> dict[str, Node]:
        """Returns the node of every decision and score that the replay exposes."""
        (output,) = self.replay.module.graph.find_nodes(op="output")
        nodes = output.args[0][len(self.replay.outputs) :]
        return dict(zip(self.replay.exposed, nodes, strict=True))

    def name_of(self, node: Node) -> str:
        """Returns what a value is called in ONNX."""
        return self.renamed.get(node.name, node.name)

    def names(self) -> dict[str, str]:
        """Returns the value in ONNX of every decision and score of the replay."""
        return {name: self.name_of(node) for name, node in self.exposed().items()}

    def given(self) -> dict[str, TensorSpec]:
        """Returns the input that holds each decision, by the name of its value in ONNX."""
        names, found = self.names(), {}
        inputs = (*self.replay.inputs, *self.replay.decision_inputs)
        nodes = self.replay.module.graph.find_nodes(op="placeholder")
        values = {name: node.meta["val"] for name, node in zip(inputs, nodes, strict=True)}
        for decision in self.replay.decisions:
            for position, name in decision.replayed.items():
                dtype = str(values[name].dtype).removeprefix("torch.")
                spec = TensorSpec(name, tuple(values[name].shape), dtype)
                found[names[decision.own[position]]] = spec
        return found


def renamed(program: ExportedProgram, outputs: Sequence[str]) -> dict[str, str]:
    """Returns the outputs of a rewritten program, by the name of their value in its graph."""
    (output,) = as_graph_module(program).graph.find_nodes(op="output")
    return {node.name: name for node, name in zip(output.args[0], outputs, strict=True)}


class ScoreGraph:
    """Computes the scores of decisions from the values that an artifact shows.

    Args:
        graph: The graph of the source.
        own: The names of the decisions, which are no scores.
        shapes: The shapes of what the artifact shows, by name.

    Attributes:
        sources: The values that it takes from the artifact, by their name in ONNX.
    """

    def __init__(
        self,
        graph: DecidedGraph,
        own: Collection[str],
        shapes: Mapping[str, tuple[int, ...] | None],
    ) -> None:
        module = graph.replay.module
        self._wanted = [name for name in graph.exposed() if name not in own]
        own_graph = copy.deepcopy(module.graph)
        nodes = {node.name: node for node in own_graph.nodes}
        wanted = [nodes[graph.exposed()[name].name] for name in self._wanted]
        placeholders = own_graph.find_nodes(op="placeholder")
        names = (*graph.replay.inputs, *graph.replay.decision_inputs)
        self._inputs = dict(zip(names, placeholders, strict=True))
        self.sources: dict[str, Node] = {}
        left, seen = [*wanted], set[Node]()
        while left:
            node = left.pop()
            if node in seen or node.op != "call_function":
                continue
            seen.add(node)
            name = graph.name_of(node)
            if name in shapes and shapes[name] == _shape(node):
                self.sources[name] = node
            else:
                left += node.all_input_nodes
        (output,) = own_graph.find_nodes(op="output")
        output.args = (tuple(wanted),)
        self._module = GraphModule(module, own_graph)

    def run(self, inputs: Values, shown: Values) -> dict[str, Array]:
        """Returns the scores of a batch.

        Args:
            inputs: The inputs of the model, and the decisions.
            shown: What the artifact shows.
        """
        known = {node: torch.from_numpy(shown[name].copy()) for name, node in self.sources.items()}
        given = [torch.from_numpy(inputs[name].copy()) for name in self._inputs]
        with torch_warnings_silenced(), torch.no_grad():
            found = _Given(self._module, known).run(*given)
        return {
            name: (one.float() if one.is_floating_point() else one).numpy()
            for name, one in zip(self._wanted, found, strict=True)
        }


class _Given(Interpreter):
    """Runs a graph with some of its values given."""

    def __init__(self, module: GraphModule, known: Mapping[Node, Tensor]) -> None:
        super().__init__(module)
        self._known = {node.name: value for node, value in known.items()}

    def run_node(self, n: Node) -> Any:
        """Returns the value that is given, or runs the node."""
        if n.name in self._known:
            return self._known[n.name].to(n.meta["val"].dtype)
        return super().run_node(n)


def _shape(node: Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


class OwnReplay:
    """The artifact of a bundle, shown with its decisions and replayed with eager's.

    Args:
        artifact: The artifact.
        graph: The graph of the source.
        batches: The batches; the first of them shows the shapes of values.
        folder: Where files go.

    Raises:
        CannotReplayError: The artifact does not show its decisions.
    """

    def __init__(
        self, artifact: Artifact, graph: DecidedGraph, batches: Batches, folder: Path
    ) -> None:
        self._graph, self._folder, self._inputs = graph, folder, [*batches]
        self._names, self._given = graph.names(), graph.given()
        self._own = {name for one in graph.replay.decisions for name in one.own.values()}
        self._artifact = self._apart(artifact)
        shapes = self._artifact.shapes
        visible = {*shapes, *graph.replay.outputs}
        for name in sorted(self._own):
            if self._names[name] not in visible:
                raise CannotReplayError(f"it does not show '{self._names[name]}', a decision")
        self._scores = ScoreGraph(graph, self._own, shapes)
        self._read = self._read_to_decide(shapes)
        own = {self._names[name] for name in self._own}
        shown = {*own, *self._scores.sources, *self._read.values()}
        self._shown = sorted(shown - {*graph.replay.outputs})

    def free(self) -> dict[str, Array]:
        """Returns what the artifact decides by itself, (batches, …) by name."""
        found = self._run(self._inputs, {})
        return {name: np.stack([one[self._names[name]] for one in found]) for name in self._own}

    def run(self, batches: Batches) -> dict[str, Array]:
        """Returns outputs, decisions and scores, (batches, …) by name.

        Args:
            batches: The batches, eager's decisions among their arrays.
        """
        rows = [*batches]
        return self._named(self._run(rows, self._given), rows)

    def _run(self, rows: Sequence[Values], given: Mapping[str, TensorSpec]) -> list[Values]:
        """Runs the artifact on some rows; returns outputs and further values by their names."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            return self._run_from(self._artifact.write(folder, self._shown, given), rows)
        except RuntimesError as error:
            raise CannotReplayError(f"its runtime does not take it so: {error.what}") from error

    def _run_from(self, path: Path, rows: Sequence[Values]) -> list[Values]:
        """Runs a file that was written from the artifact."""
        with self._artifact.opened(path) as runner:
            taken = [spec.name for spec in runner.inputs]
            last = [spec.name for spec in runner.outputs][-len(self._shown) :]
            further = dict(zip(self._shown, last, strict=True)) if self._shown else {}
            found: list[Values] = []
            for row in rows:
                answer = runner.run({name: row[name] for name in taken})
                found.append({**answer, **{n: answer[one] for n, one in further.items()}})
        return found

    def _named(self, found: Sequence[Values], rows: Sequence[Values]) -> dict[str, Array]:
        """Returns what the replay gives, by its names."""
        replay = self._graph.replay
        named = []
        for row, one in zip(rows, found, strict=True):
            given = {name: row[spec.name] for name, spec in self._given.items()}
            outputs = {name: given.get(name, one[name]) for name in replay.outputs}
            own = {name: one[self._names[name]] for name in self._own}
            scores = self._scores.run(row, one)
            for name, value in self._read.items():
                if _is_near(scores[name], one[value]):
                    scores[name] = one[value]
            named.append({**outputs, **scores, **own})
        return {name: np.stack([one[name] for one in named]) for name in named[0]}

    def _read_to_decide(self, shapes: Collection[str]) -> dict[str, str]:
        """Returns the value that the artifact reads where it decides on a score, by the score."""
        found = {}
        for decision in self._graph.replay.decisions:
            own = self._names[next(iter(decision.own.values()))]
            if decision.kind is DecisionKind.MATCH or own not in shapes:
                continue  # a kernel reads other values than scores
            for score, value in zip(decision.scores, self._artifact.read_for(own), strict=False):
                if value in shapes and score in self._names:
                    found[score] = value
        return found

    def _apart(self, artifact: Artifact) -> Artifact:
        """Takes the kernels apart that decide inside; what that gives has to be the same."""
        if not isinstance(artifact, OnnxArtifact):
            return artifact
        model = ir.load(artifact.path)
        if all(node.op_type != _DECIDES_INSIDE for node in model.graph):
            return artifact
        model = InlinePass(criteria=lambda one: one.name == _DECIDES_INSIDE)(model).model
        self._name_matches(model)
        path = self._folder / artifact.path.name
        save_onnx(model, path)
        apart = OnnxArtifact(path, artifact.precision, native=artifact.native)
        pairs = zip(artifact.outputs(self._inputs), apart.outputs(self._inputs), strict=True)
        if any(distance(one, other) > FLOOR["fp32"] for one, other in pairs):
            raise CannotReplayError(f"taken apart, '{_DECIDES_INSIDE}' gives something else")
        return apart

    def _name_matches(self, model: ir.Model) -> None:
        """Gives the results of matches the names that they have in the emitted graph."""
        there = computed_values(model)
        matches = [
            one
            for one in self._graph.replay.decisions
            if one.kind is DecisionKind.MATCH and self._names[one.own[1]] not in there
        ]
        nodes = [one for one in model.graph if one.op_type == _MATCH and one.domain == DOMAIN]
        nodes = [one for one in nodes if one.outputs[1].name not in self._names.values()]
        if len(nodes) != len(matches):
            raise CannotReplayError(f"it has {len(nodes)} matches for {len(matches)} of the source")
        for node, match in zip(nodes, matches, strict=True):
            for position, name in match.own.items():
                node.outputs[position].name = self._names[name]


def _is_near(computed: Array, read: Array) -> bool:
    """Returns whether what an artifact reads may be a score, and not its negative."""
    if computed.shape != read.shape or read.dtype.kind != "f":
        return False
    return distance({"": computed}, {"": read}) < _FORM


def own_replay(
    bundle: Path,
    manifest: Manifest,
    graph: DecidedGraph,
    batches: Batches,
    folder: Path,
    threads: int | None = None,
    *,
    native: bool = True,
) -> OwnReplay:
    """Returns the replay of the artifact in a bundle.

    Args:
        bundle: The bundle's folder.
        manifest: What it holds.
        graph: The graph of the source.
        batches: The batches.
        folder: Where files go.
        threads: The most threads; None leaves it to the runtime.
        native: Whether the native kernels run.

    Raises:
        CannotReplayError: The artifact does not show its decisions.
    """
    if not BACKENDS[manifest.target].runs_on_cpu:
        raise CannotReplayError("an engine shows none of its values")
    path, precision = bundle / manifest.artifact, manifest.precision
    artifact = artifact_at(path, precision, native=native, threads=threads)
    try:
        return OwnReplay(artifact, graph, batches, folder)
    except RuntimesError as error:
        raise CannotReplayError(f"its runtime does not take it: {error.what}") from error
