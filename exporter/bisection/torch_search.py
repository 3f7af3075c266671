"""Finds the first node of a rewritten graph that gives something else on the right inputs.

The passes of the traced graph leave the names of the values that they leave; what they replace is
found under the names that the new value stands for. As in ``onnx_search`` every value that the
traced graph has too is given to its readers, and computed beside.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from tokexport.exporter.bisection.onnx_search import NEARER
from tokexport.exporter.build.emit import emit
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.errors import ExporterError
from tokexport.exporter.graph_values.given_values import Part
from tokexport.exporter.graph_values.local_errors import compared, distance, moved_inputs
from tokexport.exporter.graph_values.suspect import Suspect, Values
from tokexport.exporter.torch_warnings import torch_warnings_silenced
from tokexport.graph_passes.torch_passes.graph.calls import operator_name
from tokexport.graph_passes.torch_passes.graph.editor import STANDS_FOR
from tokexport.runtimes.arrays import Array


class _Noting(Interpreter):
    """Runs a graph and notes what its calls give; known values are given to their readers."""

    def __init__(self, module: GraphModule, known: Mapping[str, Tensor]) -> None:
        super().__init__(module)
        self._known = known
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        """Runs a node, and returns its known value where there is one."""
        result = super().run_node(n)
        if n.op != "call_function" or not isinstance(result, Tensor):
            return result
        self.values[n.name] = result.detach().clone()
        known = self._known.get(n.name)
        if known is None or known.shape != result.shape or known.dtype != result.dtype:
            return result
        return known


def _run(module: GraphModule, inputs: Values, known: Mapping[str, Tensor]) -> tuple[Any, Any]:
    noting = _Noting(module, known)
    with torch_warnings_silenced(), torch.no_grad():
        outputs = noting.run(*tensors_of(dict(inputs)))
    return outputs, noting.values


def graph_values(module: GraphModule, inputs: Sequence[Values]) -> list[dict[str, Tensor]]:
    """Returns what every call of an unlifted graph gives, by batch."""
    return [_run(module, one, {})[1] for one in inputs]


def as_arrays(values: Mapping[str, Tensor]) -> dict[str, Array]:
    """Returns values as arrays; those that numpy has no type for are left out."""
    wide = (torch.bfloat16,)
    return {
        name: one.contiguous().numpy()
        for name, one in values.items()
        if one.dtype not in wide and not one.is_complex()
    }


class TorchSearch:
    """Looks for the node of a rewritten graph that is off.

    Args:
        rewritten: The graph, unlifted.
        inputs: The inputs of the model, by batch.
        known: What the traced graph computes, by batch.
        outputs: The right outputs, by batch.
        names: The names of the outputs.
    """

    def __init__(
        self,
        rewritten: GraphModule,
        inputs: Sequence[Values],
        known: Sequence[Mapping[str, Tensor]],
        outputs: Sequence[Values],
        names: Sequence[str],
    ) -> None:
        self._module, self._names = rewritten, names
        self._inputs, self._outputs = inputs, outputs
        self._nodes = {node.name: node for node in rewritten.graph.nodes}
        self._known = [self._named(one) for one in known]

    def _named(self, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns known values by their names in the rewritten graph."""
        found = {}
        for name, node in self._nodes.items():
            origins = (name, *node.meta.get(STANDS_FOR, ()))
            source = next((known[one] for one in origins if one in known), None)
            given = node.meta.get("val")
            if source is not None and isinstance(given, Tensor) and source.shape == given.shape:
                found[name] = source
        return found

    def first(self) -> Suspect | None:
        """Returns the first node that is off and matters; None if none is."""
        suspects = [*self._suspects()]
        for suspect in suspects:
            if self._matters(suspect):
                return suspect
        return suspects[0] if suspects else None

    def _suspects(self) -> Iterator[Suspect]:
        flagged: dict[str, int] = {}
        for batch, (inputs, known) in enumerate(zip(self._inputs, self._known, strict=True)):
            _, values = _run(self._module, inputs, known)
            for name, value in as_arrays(values).items():
                if name in known and name not in flagged:
                    expected = as_arrays({name: known[name]})[name]
                    if compared(expected, value).is_fault:
                        flagged[name] = batch
        for name in (name for name in self._nodes if name in flagged):
            if suspect := self._confirmed(name, flagged[name]):
                yield suspect

    def _confirmed(self, name: str, batch: int) -> Suspect | None:
        """Runs the nodes before a value, its inputs moved too; None if that explains it."""
        known = self._known[batch]
        module, sources, nodes = self._part(name, known)
        given = {**as_arrays(known), **self._inputs[batch]}
        inputs = {source: given[source] for source in sources}
        runs = []
        with torch_warnings_silenced(), torch.no_grad():
            for one in moved_inputs(inputs):
                (value,) = module(*tensors_of(one))
                runs.append(np.asarray(value.contiguous().numpy()))
        difference = compared(given[name], runs[0], runs)
        if not difference.is_fault:
            return None
        return Suspect(
            value=name,
            node=name,
            operator=operator_name(self._nodes[name]),
            nodes=nodes,
            difference=difference,
            part=_as_part(module, inputs, name),
            inputs=inputs,
            expected={name: given[name]},
            found={name: runs[0]},
            why="On the right inputs it gives something else than the traced graph.",
            fed=self._inputs[batch],
        )

    def _part(
        self, name: str, known: Mapping[str, Tensor]
    ) -> tuple[GraphModule, list[str], tuple[str, ...]]:
        """Returns the nodes between known values and one, as a module with its inputs' names."""
        needed, left = {self._nodes[name]}, [self._nodes[name]]
        while left:
            for part in left.pop().all_input_nodes:
                if part not in needed:
                    needed.add(part)
                    if part.name not in known and part.op == "call_function":
                        left.append(part)
        graph, made, sources, calls = Graph(), dict[Node, Node](), list[str](), []
        ordered = [node for node in self._module.graph.nodes if node in needed]
        for node in ordered:
            is_known = node.op == "placeholder" or (node.name in known and node.name != name)
            if is_known:
                made[node] = graph.placeholder(node.name)
                made[node].meta["val"] = node.meta.get("val")
                sources.append(node.name)
        for node in ordered:
            if node not in made:
                made[node] = graph.node_copy(node, lambda one: made[one])
                if node.op == "call_function":
                    calls.append(node.name)
        graph.output((made[self._nodes[name]],))
        return GraphModule(self._module, graph), self._renamed(sources), tuple(calls)

    def _renamed(self, sources: Sequence[str]) -> list[str]:
        """Returns the names of sources; inputs of the model under those that a user gives them."""
        placeholders = [n.name for n in self._module.graph.find_nodes(op="placeholder")]
        names = dict(zip(placeholders, self._inputs[0], strict=True))
        return [names.get(source, source) for source in sources]

    def _matters(self, suspect: Suspect) -> bool:
        """Returns whether the outputs come nearer where the right value is given."""
        for inputs, known, right in zip(self._inputs, self._known, self._outputs, strict=True):
            before, _ = _run(self._module, inputs, {})
            healed, _ = _run(self._module, inputs, {suspect.value: known[suspect.value]})
            errors = [distance(right, self._by_name(one)) for one in (before, healed)]
            if errors[1] <= NEARER * errors[0]:
                return True
        return False

    def _by_name(self, outputs: Sequence[Tensor]) -> dict[str, Array]:
        return {name: one.numpy() for name, one in zip(self._names, outputs, strict=True)}


def _as_part(module: GraphModule, inputs: Values, name: str) -> Part | None:
    """Returns the part as ONNX; None where it has no ONNX form."""
    try:
        example = [torch.from_numpy(np.array(one)) for one in inputs.values()]
        own = GraphModule(module, copy.deepcopy(module.graph))
        model = emit(capture(own, example), [*inputs], [name])
    except (ExporterError, RuntimeError):
        return None
    return Part(model, {one: one for one in inputs})
