"""Finds the node that ends the process: cuts the model after a node, and tries the cut.

A cut after node k of n, in the order of the graph, has as outputs all values that its nodes give
and do not read::

    x → a → b → c → y      behind b:  x → a → b

A cut that survives and the next longer one that dies are found by bisection: log2(n) tries. No node
is blamed where the whole model does not die again, or where a try neither survives nor dies as the
whole model did.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Final

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.source_lines import node_line

#: How long the search may take.
SEARCH_SECONDS: Final = 300.0


class Outcome(Enum):
    """The outcomes of trying a cut."""

    LIVES = auto()
    DIES = auto()
    UNCLEAR = auto()


@dataclass(frozen=True)
class Blamed:
    """The node that ends the process.

    Attributes:
        node: Its name.
        operator: ``domain:Type`` or ``Type``.
        line: The source line it came from; '' where that is not known.
    """

    node: str = ""
    operator: str = ""
    line: str = ""

    def __str__(self) -> str:
        """Returns its text in a message; '' for no node."""
        if not self.operator:
            return ""
        name = self.node or "(without a name)"
        return f"Node {name}, operator {self.operator}" + (f", from {self.line}" * bool(self.line))


def deadly_node(model: Path, folder: Path, try_cut: Callable[[Path], Outcome]) -> Blamed:
    """Returns the node that ends the process; one without an operator if it is not found.

    Args:
        model: The ONNX file.
        folder: An empty folder for the cuts.
        try_cut: Returns how the cut in a file ends.
    """
    end = time.monotonic() + SEARCH_SECONDS

    def outcome(count: int) -> Outcome:
        if time.monotonic() > end:
            return Outcome.UNCLEAR
        path = folder / model.name
        ir.save(cut_behind(ir.load(model), count), path, external_data=f"{path.name}.data")
        return try_cut(path)

    lives, dies = 0, len(ir.load(model).graph)
    if outcome(dies) is not Outcome.DIES:
        return Blamed()
    last = Outcome.UNCLEAR  # of the longest cut that did not die
    while dies - lives > 1:
        middle = (lives + dies) // 2
        found = outcome(middle)
        if found is Outcome.DIES:
            dies = middle
        else:
            lives, last = middle, found
    if lives == 0:
        # Without a node a runtime may refuse it, which is no end either.
        last = Outcome.UNCLEAR if outcome(0) is Outcome.DIES else Outcome.LIVES
    if last is not Outcome.LIVES:
        return Blamed()
    node = list(ir.load(model).graph)[dies - 1]
    operator = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
    return Blamed(node.name or "", operator, node_line(node))


def cut_behind(model: ir.Model, count: int) -> ir.Model:
    """Cuts a model behind its first ``count`` nodes, in place, and returns it."""
    graph = model.graph
    kept, gone = list(graph)[:count], list(graph)[count:]
    graph.outputs.clear()
    graph.remove(reversed(gone), safe=True)
    given = [value for node in kept for value in node.outputs] or [*graph.inputs]
    graph.outputs.extend(value for value in given if value.name and not value.uses())
    drop_unread_weights(model)
    return model


def drop_unread_weights(model: ir.Model) -> None:
    """Removes the weights that no node reads, in place."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_input() and not value.is_graph_output():
            del model.graph.initializers[name]
