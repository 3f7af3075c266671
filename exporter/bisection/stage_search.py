"""Looks for the node that is off in the stage that differs first, and for the pass behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tokexport.exporter.bisection.artifact_search import ArtifactSearch
from tokexport.exporter.bisection.made_by import (
    EMITTED,
    first_wrong,
    lowered_by,
    lowering_makers,
    rewriting_names,
    rewritten_by,
)
from tokexport.exporter.bisection.onnx_search import OnnxSearch
from tokexport.exporter.bisection.places import Place, Places
from tokexport.exporter.bisection.stage_walk import Walk, batches_of, rows_of
from tokexport.exporter.bisection.torch_search import TorchSearch, as_arrays, graph_values
from tokexport.exporter.build import run_stage
from tokexport.exporter.build.emit import emit
from tokexport.exporter.build.precision import arithmetic_of
from tokexport.exporter.capture.random_ops import capture_without_draws
from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.errors import ExporterError
from tokexport.exporter.graph_values.given_values import Part
from tokexport.exporter.graph_values.local_errors import Difference
from tokexport.exporter.graph_values.run_model import exposed_values, run_each
from tokexport.exporter.graph_values.shown_values import OnnxArtifact
from tokexport.exporter.graph_values.suspect import Suspect, Values
from tokexport.exporter.parity.proof import judge
from tokexport.exporter.parity.trace_difference import first_difference
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.errors import GraphError
from tokexport.graph_passes.onnx_passes.graph.pass_runner import pass_name
from tokexport.graph_passes.stack_traces import source_line
from tokexport.graph_passes.torch_passes.graph.calls import operator_name
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module
from tokexport.runtimes.arrays import Array

#: On how many batches the stages are searched.
_BATCHES = 2


@dataclass(frozen=True)
class Found:
    """The node that is off.

    Attributes:
        suspect: It.
        place: Its block and its line.
        made_by: The pass behind it; '' where that is not known.
    """

    suspect: Suspect
    place: Place
    made_by: str


class StageSearch:
    """Looks for the node that is off in the stage that differs first.

    Args:
        walk: The stages up to it.
    """

    def __init__(self, walk: Walk) -> None:
        assert walk.answered is not None
        assert walk.program is not None
        self._walk, self._answered = walk, walk.answered
        self._rows = batches_of(walk, _BATCHES)
        arrays = {
            name: self._answered.batches.arrays[name] for name in self._answered.batches.names
        }
        self._inputs: list[Values] = [rows_of(arrays, row) for row in self._rows]
        self._right = [rows_of(self._answered.reference.outputs, row) for row in self._rows]
        self._places = Places([walk.program])

    def first(self) -> Found | None:
        """Returns the node; None if none is singled out."""
        match self._walk.stage:
            case "captured":
                return self._captured()
            case "rewritten":
                return self._rewritten()
            case "onnx":
                return self._emitted()
            case "lowered":
                return self._lowered()
            case _:
                return self._artifact()

    def _captured(self) -> Found | None:
        module = self._walk.module
        assert module is not None
        for place, inputs in enumerate(self._inputs):
            tensors = tensors_of(dict(inputs))
            found = first_difference(module, self._answered.model, tensors)
            if found is None:
                continue
            node = found.node
            suspect = Suspect(
                value=node.name,
                node=node.name,
                operator=operator_name(node),
                nodes=(node.name,),
                difference=self._off_by("gives what eager computes nowhere"),
                part=self._whole_trace(),
                inputs=inputs,
                expected=self._right[place],
                found={},
                why=found.said,
                fed=inputs,
            )
            block = self._places.of(node.name).block
            return Found(suspect, Place(block, source_line(node)), "tracing")
        return None

    def _off_by(self, said: str) -> Difference:
        """Returns how far the outputs of the stage are off, with a clause on its node."""
        assert self._walk.result is not None
        worst = max(self._walk.result.worst.values(), key=lambda one: one.share, default=None)
        if worst is None:
            return Difference(np.inf, 0.0, said)
        return Difference(worst.error, worst.allowed, said)

    def _whole_trace(self) -> Part | None:
        """Returns the traced graph as ONNX: what eager computes at a node of it is not known."""
        answered = self._answered
        try:
            program = capture_without_draws(answered.model, answered.batches)
            program = pipelines.rewrite(program).program
            model = emit(program, answered.batches.names, answered.names)
        except (ExporterError, GraphError):
            return None
        return Part(model, {name: name for name in answered.batches.names})

    def _rewritten(self) -> Found | None:
        walk, answered = self._walk, self._answered
        assert walk.program is not None
        assert walk.module is not None
        known = graph_values(walk.module, self._inputs)
        rewritten = as_graph_module(walk.program)
        names = answered.names
        suspect = TorchSearch(rewritten, self._inputs, known, self._right, names).first()
        if suspect is None:
            return None
        return Found(suspect, self._places.of(suspect.value), self._wrong_rewrite())

    def _wrong_rewrite(self) -> str:
        """Returns the pass after which the traced graph is wrong first."""
        answered, names = self._answered, rewriting_names()

        def is_wrong(count: int) -> bool:
            program = capture_without_draws(answered.model, answered.batches)
            module = as_graph_module(rewritten_by(program, count))
            return self._fails(run_stage.run_graph(module, answered.batches, answered.names))

        count = first_wrong(len(names), is_wrong)
        return "" if count is None else names.get(count, "")

    def _emitted(self) -> Found | None:
        assert self._walk.program is not None
        assert self._walk.emitted is not None
        module = as_graph_module(self._walk.program)
        known = [as_arrays(one) for one in graph_values(module, self._inputs)]
        (results,) = module.graph.find_nodes(op="output")
        for values in known:
            for name, node in zip(self._answered.names, results.args[0], strict=True):
                if node.name in values:
                    values[name] = values[node.name]
        suspect = self._in_onnx(self._walk.emitted, known)
        return self._found_in(suspect, self._walk.emitted, EMITTED)

    def _lowered(self) -> Found | None:
        """Finds the pass first, and then the node between the graphs before it and behind it."""
        walk, config = self._walk, self._walk.run.config
        assert walk.emitted is not None
        assert walk.lowered is not None
        arithmetic = arithmetic_of(config, ir.load(walk.emitted), self._answered.batches)
        passes = config.backend.lowering(arithmetic)
        outputs = self._answered.reference.outputs

        def is_wrong(count: int) -> bool:
            assert walk.emitted is not None
            model = lowered_by(walk.emitted, passes, count)
            rows = run_each(model, [*self._answered.batches])
            return self._fails({name: np.stack([one[name] for one in rows]) for name in outputs})

        count = first_wrong(len(passes), is_wrong)
        if not count:
            suspect = self._in_onnx(walk.lowered, exposed_values(walk.emitted, self._inputs))
            return self._found_in(suspect, walk.lowered, "")
        before, behind = (walk.run.kept.path / f"bisect-{one}.onnx" for one in ("before", "behind"))
        ir.save(lowered_by(walk.emitted, passes, count - 1), before)
        ir.save(lowered_by(walk.emitted, passes, count), behind)
        suspect = self._in_onnx(behind, exposed_values(before, self._inputs))
        return self._found_in(suspect, behind, pass_name(passes[count - 1]))

    def _artifact(self) -> Found | None:
        walk = self._walk
        artifact, lowered = walk.artifact, walk.lowered
        assert artifact is not None
        assert lowered is not None
        if isinstance(artifact, OnnxArtifact) and not artifact.native:
            suspect = self._in_onnx(artifact.path, exposed_values(lowered, self._inputs))
            return self._found_in(suspect, artifact.path, None)
        held_to = artifact.path if isinstance(artifact, OnnxArtifact) else lowered
        known = exposed_values(held_to, self._inputs)
        suspect = ArtifactSearch(artifact, held_to, self._inputs, known).first()
        return self._found_in(suspect, held_to, None)

    def _in_onnx(self, path: Path, known: Sequence[Values]) -> Suspect | None:
        precision = self._walk.run.config.precision
        return OnnxSearch(path, self._inputs, known, self._right, precision).first()

    def _found_in(self, suspect: Suspect | None, path: Path, made_by: str | None) -> Found | None:
        """Adds place and pass; a pass of None is looked up in a lowering."""
        if suspect is None:
            return None
        walk = self._walk
        lines = walk.run.kept.lines
        place = self._places.of_model(ir.load(path), lines).get(suspect.value, Place())
        if made_by is None and walk.emitted is not None:
            config = walk.run.config
            arithmetic = arithmetic_of(config, ir.load(walk.emitted), self._answered.batches)
            makers = lowering_makers(walk.emitted, config.backend.lowering(arithmetic))
            made_by = makers.of(suspect.value, suspect.operator)
        return Found(suspect, place, made_by or "")

    def _fails(self, found: Mapping[str, Array]) -> bool:
        """Returns whether outputs leave the gates of the stage."""
        expected = self._answered.reference.outputs
        return not judge(self._walk.stage, expected, found, self._walk.gates).passed
