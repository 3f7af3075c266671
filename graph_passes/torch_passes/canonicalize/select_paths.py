"""Joins the graphs of the paths through code, and selects by the branches of an input.

Before → after::

    one graph for ``if a:`` taken, one for not taken; each checks that its branches are taken
    both in one, on the same weights and inputs; output = where(all of the first's, one, other)

The assumptions of one path are required where that path is taken; that some path is taken, always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from tokexport.graph_passes.errors import TokenCountError
from tokexport.graph_passes.torch_passes.graph.calls import dtype_of, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.pad.padded_rows import Check, Selection

#: Kinds of inputs of a graph that all paths share.
_SHARED = ("input", "weight")


@dataclass(frozen=True)
class Path:
    """A path through the branches of code.

    Attributes:
        program: Its graph; the last output says whether its checks hold.
        selections: The choices that were padded in it.
        checks: Its checks, in order.
    """

    program: ExportedProgram
    selections: tuple[Selection, ...]
    checks: tuple[Check, ...]


class SelectPaths(TorchPass):
    """Adds other paths to the graph of one, and selects.

    Args:
        path: The path whose program is changed.
        others: The others.

    Attributes:
        selections: The choices of all, and when each is made.
        checks: What the last output says now.
    """

    name: ClassVar[str] = "select paths"

    def __init__(self, path: Path, others: Sequence[Path]) -> None:
        self._path, self._others = path, others
        self.selections: tuple[Selection, ...] = ()
        self.checks: tuple[Check, ...] = ()

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many paths it has.

        Raises:
            TokenCountError: The paths give outputs of different shapes.
        """
        (output,) = edit.graph.find_nodes(op="output")
        inputs = {
            key: node for node, key in _inputs(self._path.program).items() if key[0] in _SHARED
        }
        with edit.before(output):
            ways = [_Way(self._path, {node: node for node in edit.graph.nodes})]
            ways += [_Way(one, _copied(edit, inputs, one)) for one in self._others]
            taken = [way.taken(edit) for way in ways]
            results = [way.outputs() for way in ways]
            chosen = [_selected(edit, taken, parts) for parts in zip(*results, strict=True)]
            self.checks = tuple(_checks(edit, ways, taken))
            holds = [edit.view(check.holds, [1]) for check in self.checks]
            self.selections = tuple(
                Selection(way.nodes[one.count], one.cap, one.line, condition)
                for way, condition in zip(ways, taken, strict=True)
                for one in way.path.selections
            )
            both = edit.call(aten.cat.default, holds, 0) if len(holds) > 1 else holds[0]
        output.args = ((*chosen, both),)
        return len(ways)


class _Way:
    """One path in the graph of all.

    Args:
        path: The path.
        nodes: What stands for each of its nodes there.
    """

    def __init__(self, path: Path, nodes: dict[Node, Node]) -> None:
        self.path, self.nodes = path, nodes

    def outputs(self) -> list[Node]:
        """Returns its outputs but for its checks."""
        (output,) = self.path.program.graph.find_nodes(op="output")
        return [self.nodes[node] for node in output.args[0][:-1]]

    def taken(self, edit: Editor) -> Node:
        """Returns whether an input takes it."""
        found: Node | None = None
        for check in self.path.checks:
            if check.kind == "branch":
                own = self.nodes[check.holds]
                found = own if found is None else edit.call(aten.logical_and.default, found, own)
        assert found is not None
        return found


def _copied(edit: Editor, inputs: Mapping[tuple[str, Any], Node], other: Path) -> dict[Node, Node]:
    """Inserts the calls of another path, on the weights and inputs of the first."""
    keys = _inputs(other.program)
    nodes: dict[Node, Node] = {}
    for node in other.program.graph.nodes:
        if node.op == "placeholder":
            key = keys[node]
            nodes[node] = inputs[key] if key[0] in _SHARED else edit.constant(key[1])
        elif node.op == "call_function":
            nodes[node] = edit.graph.node_copy(node, nodes.__getitem__)
    return nodes


def _inputs(program: ExportedProgram) -> dict[Node, tuple[str, Any]]:
    """Returns the identity of each input of a graph: a weight's name, a constant, or a number."""
    placeholders = program.graph.find_nodes(op="placeholder")
    found: dict[Node, tuple[str, Any]] = {}
    users = 0
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            found[node] = ("input", users)
            users += 1
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            found[node] = ("constant", program.constants[str(spec.target)])
        else:
            found[node] = ("weight", spec.target)
    return found


def _selected(edit: Editor, taken: Sequence[Node], parts: Sequence[Node]) -> Node:
    """Returns the value of the path that is taken; that of the last if none is."""
    if len({(shape_of(part), dtype_of(part)) for part in parts}) > 1:
        raise TokenCountError(
            "The branches of the code give outputs of different shapes.", where=""
        )
    found = parts[-1]
    for condition, part in zip(reversed(taken[:-1]), reversed(parts[:-1]), strict=True):
        found = edit.call(aten.where.self, condition, part, found)
    return found


def _checks(edit: Editor, ways: Sequence[_Way], taken: Sequence[Node]) -> list[Check]:
    """Returns the check that some path is taken, and the checks of each where it is."""
    some = taken[0]
    for one in taken[1:]:
        some = edit.call(aten.logical_or.default, some, one)
    lines = dict.fromkeys(
        check.line for way in ways for check in way.path.checks if check.kind == "branch"
    )
    found = [Check(some, "branch", "the code branches as on none of the samples", ", ".join(lines))]
    for way, condition in zip(ways, taken, strict=True):
        other = edit.call(aten.logical_not.default, condition)
        for check in way.path.checks:
            if check.kind != "branch":
                holds = edit.call(aten.logical_or.default, way.nodes[check.holds], other)
                found.append(Check(holds, check.kind, check.said, check.line))
    return found
