"""Finds the decisions of a graph, and makes a graph whose decisions are inputs.

A decision turns numbers into positions or truth values: which tokens merge, which are kept. Where
two of the numbers are equal up to rounding, two correct programs may decide differently, and differ
by far more than rounding from there on. So decisions are taken out::

    order = argsort(scores)          order: an input of the graph
    y = gather(x, 1, order)     →    y = gather(x, 1, order)
                                     further results: scores, argsort(scores)

What is left is arithmetic, in which two correct programs agree. The scores, and the decisions that
the graph itself would make, show how close every decision was.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from tokexport.graph_passes.torch_passes.graph.calls import (
    axis,
    is_call,
    is_tensor,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.decision_kinds import (
    WITH_VALUES,
    Decision,
    decides,
    decision_of,
    scores_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import PARTNERS, STANDS_FOR, Editor, aten


@dataclass(frozen=True)
class Source:
    """The names of a value in the graph before any pass.

    Attributes:
        names: The names of the values there that hold it, possibly spread over further axes.
        shape: Its own shape.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ReplayGraph:
    """A graph whose decisions are inputs.

    Attributes:
        module: Takes the program's inputs, then ``decision_inputs``; returns its outputs, then
            ``exposed``.
        inputs: The names of the program's own inputs.
        outputs: The names of the program's own outputs.
        decision_inputs: The names of the inputs that hold decisions.
        exposed: The names of the further results: scores, and what the graph itself decides.
        decisions: The decisions, in the order of the graph.
        sources: Where eager has every decision input, and every score that is no input.
    """

    module: GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    decision_inputs: tuple[str, ...]
    exposed: tuple[str, ...]
    decisions: tuple[Decision, ...]
    sources: dict[str, Source]


def as_graph_module(program: ExportedProgram) -> GraphModule:
    """Returns a program as a module of positional tensors that returns a flat tuple.

    Its graph is a copy, in which the values keep their names; the weights are shared.
    """
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    module.graph.set_codegen(CodeGen())
    module.recompile()
    return module


def expose_values(module: GraphModule, names: Sequence[str]) -> GraphModule:
    """Returns a copy of an unlifted program that returns the values of some names."""
    graph = copy.deepcopy(module.graph)
    nodes = {node.name: node for node in graph.nodes}
    (output,) = graph.find_nodes(op="output")
    output.args = (tuple(nodes[name] for name in names),)
    return GraphModule(module, graph)


def make_replay_graph(
    module: GraphModule, inputs: Sequence[str], outputs: Sequence[str]
) -> ReplayGraph:
    """Returns a copy of an unlifted program whose decisions about its inputs are inputs.

    Args:
        module: An unlifted program, rewritten or not.
        inputs: The names of its inputs.
        outputs: The names of its outputs.
    """
    own = GraphModule(module, copy.deepcopy(module.graph))
    return _ReplayBuilder(own, tuple(inputs), tuple(outputs)).build()


class _ReplayBuilder:
    """Turns the decisions of one module into inputs; see ``make_replay_graph``."""

    def __init__(
        self, module: GraphModule, inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        self._module, self._graph = module, module.graph
        self._edit = Editor(module.graph)
        self._inputs, self._outputs = inputs, outputs
        placeholders = self._graph.find_nodes(op="placeholder")
        (self._output,) = self._graph.find_nodes(op="output")
        self._last_input = placeholders[-1]
        self._replay: list[str] = []
        self._shown: dict[str, Node] = {}
        self._names: dict[Node, str] = dict(zip(placeholders, inputs, strict=True))
        for node, name in zip(self._output.args[0], outputs, strict=True):
            self._names.setdefault(node, name)

    def build(self) -> ReplayGraph:
        """Returns the graph with its decisions taken out."""
        self._decide_partners()
        found = list(find_decisions(self._graph))
        results = {node: _results(self._edit, node) for node in found}
        sources: dict[str, Source] = {}
        decisions: list[Decision] = []
        for node in found:
            parts = (*results[node].values(), *scores_of(node))
            origins = {part: sources.get(part.name) or _source(part) for part in parts}
            replayed: dict[int, str] = {}
            for position, result in results[node].items():
                readers = list(result.users)
                if readers and 0 not in shape_of(result):  # nothing is left to decide
                    self._names.pop(result, None)  # an output is the decision input from here on
                    replayed[position] = f"replayed_{len(decisions)}_{position}"
                    sources[replayed[position]] = origins[result]
                    self._tell(replayed[position], result, readers)
            if not replayed:
                continue
            scores = {part: self._show(part) for part in scores_of(node)}
            own = {position: self._show(result) for position, result in results[node].items()}
            if is_call(node, *WITH_VALUES):
                self._read_values_at(node, self._last_input)
            sources |= {
                name: origins[part] for part, name in scores.items() if name not in self._inputs
            }
            shown = tuple(scores[part] for part in scores_of(node))
            decisions.append(decision_of(node, shown, replayed, own))
        self._output.args = ((*self._output.args[0], *self._shown.values()),)
        self._graph.lint()
        self._module.recompile()
        return ReplayGraph(
            module=self._module,
            inputs=self._inputs,
            outputs=self._outputs,
            decision_inputs=tuple(self._replay),
            exposed=tuple(self._shown),
            decisions=tuple(decisions),
            sources=sources,
        )

    def _decide_partners(self) -> None:
        """Makes a match of rows that eager does not rank take only the partners as inputs."""
        edit = self._edit
        target = torch.ops.tokexport.bipartite_match.default
        for match in self._graph.find_nodes(op="call_function", target=target):
            if PARTNERS not in match.meta:
                continue
            batch, rows, _ = shape_of(operand(match, "scores"))
            with edit.before(match):
                dst = edit.call(aten.argmax.default, match.args[0], 2)
                src = edit.expand(edit.call(aten.arange.default, rows), (batch, rows))
                kept = edit.call(aten.slice.Tensor, src, 1, rows, rows)
            dst.meta[STANDS_FOR] = match.meta[PARTNERS]
            for result in list(match.users):
                edit.replace(result, (kept, src, dst)[result.args[1]])

    def _tell(self, name: str, result: Node, readers: list[Node]) -> None:
        """Makes the readers of a result read a new input instead."""
        with self._graph.inserting_after(self._last_input):
            self._last_input = self._graph.placeholder(name)
        self._last_input.meta["val"] = result.meta["val"]
        for reader in readers:
            reader.replace_input_with(result, self._last_input)
        self._replay.append(name)

    def _read_values_at(self, node: Node, index: Node) -> None:
        """Makes the values of a sort or top-k those at the positions of the input."""
        source, dim, edit = operand(node), axis(node), self._edit
        for user in [user for user in node.users if user.args[1] == 0]:
            with edit.before(user):
                if len(shape_of(index)) == len(shape_of(source)):
                    values = edit.call(aten.gather.default, source, dim, index)
                else:
                    wide = edit.call(aten.unsqueeze.default, index, dim)
                    values = edit.call(aten.gather.default, source, dim, wide)
                    values = edit.call(aten.squeeze.dim, values, dim)
            if user in self._names:
                self._names[values] = self._names.pop(user)
            edit.replace(user, values)

    def _show(self, node: Node) -> str:
        """Makes a value a further result, once, and returns the name it is found under."""
        if node not in self._names:
            name = f"shown_{len(self._shown)}"
            self._names[node], self._shown[name] = name, node
        return self._names[node]


def find_decisions(graph: Graph) -> Iterator[Node]:
    """Yields the decisions about numbers that the inputs of a graph reach, in order."""
    reached: set[Node] = set()
    for node in list(graph.nodes):
        if node.op == "placeholder" or any(source in reached for source in node.all_input_nodes):
            reached.add(node)
            if decides(node):
                yield node


def _results(edit: Editor, node: Node) -> dict[int, Node]:
    """Returns the values that hold what a call decides, by position; inserts what nobody read."""
    if is_tensor(node):
        return {0: node}
    found = {}
    for position in (1,) if is_call(node, *WITH_VALUES) else (0, 1, 2):
        parts = [u for u in node.users if u.target is operator.getitem and u.args[1] == position]
        if not parts:
            with edit.after(node, origin=node):
                parts = [edit.item(node, position)]
        for twin in parts[1:]:
            edit.replace(twin, parts[0])
        found[position] = parts[0]
    return found


def _source(node: Node) -> Source:
    """Returns where a value is found before any pass: one that none replaced keeps its name."""
    return Source((node.name, *node.meta.get(STANDS_FOR, ())), shape_of(node))
