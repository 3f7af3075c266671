"""Finds the first node of an artifact whose error that of its inputs does not explain.

The artifact runs as it is, fused and with its kernels, with one more output at a time. Beside it
stands the ONNX that it comes from, with the standard bodies of all operators. A value that is far
from the one of the ONNX is sought by bisection over the order of the graph. From there the search
goes against the flow of the data: what a node gives is compared with what its standard body gives
on the artifact's own inputs of it. Where these agree, its inputs brought the error, and the worst
of them is next. Where that ends nowhere, every node is tried in order.

A value that is read may keep the runtime from fusing across it. Where the outputs come right by
that, the fusion is to blame.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import onnx_ir as ir

from tokexport.exporter.graph_values.given_values import (
    Part,
    computed_values,
    maker_of,
    operator_of,
    part_for,
)
from tokexport.exporter.graph_values.local_errors import (
    Difference,
    compared,
    distance,
    moved_inputs,
)
from tokexport.exporter.graph_values.run_model import run_each
from tokexport.exporter.graph_values.shown_values import Artifact, Shown
from tokexport.exporter.graph_values.suspect import Suspect, Values
from tokexport.graph_passes.onnx_passes.every_target.annotate_kernel_calls import KERNEL_CALLS
from tokexport.graph_passes.onnx_passes.graph.source_lines import node_name
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.runtimes.arrays import Array

#: The share of the error of the outputs from which on a value is off.
_OFF: Final = 0.1
#: What rounding moves a value by in all, as a share of itself, by the precision.
_ROUNDING: Final = {"fp32": 2e-5, "fp16": 5e-3, "bf16": 4e-2, "int8": 1e-1}
#: How much of the error is left at most where a value that is read has put the outputs right.
_RIGHT: Final = 0.5
#: How long the search may take.
SEARCH_SECONDS: Final = 90.0


class ArtifactSearch:
    """Looks for the node of an artifact that is off.

    Args:
        artifact: The artifact.
        lowered: The ONNX that it is held to, run without native kernels.
        inputs: The inputs of the model, by batch; the first is searched.
        known: What ``lowered`` computes, by batch.
    """

    def __init__(
        self,
        artifact: Artifact,
        lowered: Path,
        inputs: Sequence[Values],
        known: Sequence[Values],
    ) -> None:
        self._artifact, self._lowered = artifact, lowered
        self._inputs, self._known = inputs, known
        names, visible = ir.load(lowered), {*artifact.shapes}
        computed = computed_values(names)
        self._order = [name for name in computed if name in visible and name in known[0]]
        self._results = [str(value.name) for value in names.graph.outputs]
        self._end = time.monotonic() + SEARCH_SECONDS
        self._shown: dict[tuple[int, str], Shown] = {}
        self.tried = 0

    def first(self) -> Suspect | None:
        """Returns the node that is off; None if none is found in time."""
        for batch in range(len(self._inputs)):
            if suspect := self._in_batch(batch):
                return suspect
        return None

    def _in_batch(self, batch: int) -> Suspect | None:
        (found,) = self._artifact.outputs([self._inputs[batch]])
        right = {name: self._known[batch][name] for name in self._results}
        error = distance(right, found)
        for name in self._results:
            self._shown[batch, name] = Shown([found[name]], [found])
        least = max(_ROUNDING[self._artifact.precision], _OFF * error)
        checked: set[str] = set()
        right_at, wrong_at = -1, len(self._order) - 1
        while wrong_at - right_at > 1 and time.monotonic() < self._end:
            middle = (right_at + wrong_at) // 2
            name = self._order[middle]
            if self._heals(batch, name, right, error):
                return self._fusion(batch, name)
            if self._off(batch, name) > least:
                wrong_at = middle
            else:
                right_at = middle
        candidates = [self._order[wrong_at], *self._results] if self._order else []
        for name in candidates:
            if suspect := self._upwards(batch, name, right, error, checked):
                return suspect
        for name in self._order:
            if time.monotonic() > self._end:
                return None
            if name not in checked and (suspect := self._local(batch, name)):
                return suspect
            checked.add(name)
        return None

    def _upwards(
        self, batch: int, name: str, right: Values, error: float, checked: set[str]
    ) -> Suspect | None:
        """Goes from a value to the worst of what it is computed from, until a node is off."""
        while name not in checked and time.monotonic() < self._end:
            checked.add(name)
            if name not in self._results and self._heals(batch, name, right, error):
                return self._fusion(batch, name)
            if suspect := self._local(batch, name):
                return suspect
            sources = [one for one in self._sources(batch, name) if one not in self._inputs[batch]]
            errors = {one: self._off(batch, one) for one in sources}
            if not errors:
                return None
            name = max(errors, key=lambda one: errors[one])
        return None

    def _value(self, batch: int, name: str) -> Array:
        return self._show(batch, name).value[0]

    def _show(self, batch: int, name: str) -> Shown:
        key = batch, name
        if key not in self._shown:
            self.tried += 1
            self._shown[key] = self._artifact.show(name, [self._inputs[batch]])
        return self._shown[key]

    def _off(self, batch: int, name: str) -> float:
        return distance({name: self._known[batch][name]}, {name: self._value(batch, name)})

    def _heals(self, batch: int, name: str, right: Values, error: float) -> bool:
        """Returns whether the outputs come right once a value is read."""
        outputs = self._show(batch, name).outputs[0]
        given = {one: outputs[one] for one in right if one in outputs}
        wanted = {one: right[one] for one in given}
        return bool(given) and error > 0 and distance(wanted, given) < _RIGHT * error

    def _sources(self, batch: int, name: str) -> list[str]:
        return [*self._part(batch, [name]).sources.values()]

    def _part(self, batch: int, names: Sequence[str], but: str = "") -> Part:
        """Returns the nodes of the ONNX between what the artifact shows and some values."""
        shown = {*self._order} - {but}
        known = {name: one for name, one in self._known[batch].items() if name in shown}
        return part_for(ir.load(self._lowered), names, known)

    def _local(self, batch: int, name: str) -> Suspect | None:
        """Holds one value to the standard body on the artifact's own inputs of it."""
        part, precision = self._part(batch, [name]), self._artifact.precision
        own = {
            source: self._inputs[batch][source]
            if source in self._inputs[batch]
            else self._value(batch, source)
            for source in part.sources.values()
        }
        inputs = part.fed(own)
        runs = run_each(part.model, moved_inputs(inputs, precision))
        moved = [one[name] for one in runs]
        found = self._value(batch, name)
        difference = compared(moved[0], found, moved, precision)
        if not difference.is_fault:
            return None
        return self._suspect(
            batch,
            part,
            inputs,
            {name: moved[0]},
            {name: found},
            difference,
            "On its own inputs the artifact gives something else than the standard operators do.",
        )

    def _fusion(self, batch: int, name: str) -> Suspect:
        """Blames the fusion across a value that puts the outputs right where it is read."""
        model = ir.load(self._lowered)
        readers = [use.node for use in computed_values(model)[name].uses()]
        made = [str(v.name) for node in readers for v in node.outputs if v.name in {*self._order}]
        target = made[0] if made else name
        part = self._part(batch, [target], but=name)
        known = {**self._known[batch], **self._inputs[batch]}
        inputs, found = part.fed(known), self._value(batch, target)
        expected = self._known[batch][target]
        return self._suspect(
            batch,
            part,
            inputs,
            {target: expected},
            {target: found},
            compared(expected, found, (), self._artifact.precision),
            f"The outputs are right once '{name}' is read: a fusion across it is off.",
        )

    def _suspect(
        self,
        batch: int,
        part: Part,
        inputs: Values,
        expected: Values,
        found: Values,
        difference: Difference,
        why: str,
    ) -> Suspect:
        (name,) = expected
        model = ir.load(self._lowered)
        maker = maker_of(model, name)
        kernel = _kernel_of(model, name) if self._artifact.native else ""
        return Suspect(
            value=name,
            node=node_name(maker),
            operator=kernel or operator_of(maker),
            nodes=part.nodes,
            difference=difference,
            part=part,
            inputs=inputs,
            expected=expected,
            found=found,
            why=why,
            fed=self._inputs[batch],
            native=self._artifact.native,
        )


def _kernel_of(model: ir.Model, value: str) -> str:
    """Returns the operator whose kernel OpenVINO may put in place of a value; '' for none."""
    for call in json.loads(model.metadata_props.get(KERNEL_CALLS, "[]")):
        if any(one["name"] == value for one in call["outputs"]):
            return f"{DOMAIN}:{call['operator']}"
    return ""
