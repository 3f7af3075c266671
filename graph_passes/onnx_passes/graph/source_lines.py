"""Finds the user's line that a node of an ONNX graph came from."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from tokexport.graph_passes.stack_traces import innermost_line

#: The metadata key under which torch's exporter leaves the stack trace of a node.
STACK_TRACE: Final = "pkg.torch.onnx.stack_trace"
#: The key of what a model in memory remembers, and no file holds.
_LINES: Final = "tokexport.source_lines"


def node_line(node: ir.Node) -> str:
    """Returns ``file:line, in function: code`` of a node, or '' where it is not known."""
    return innermost_line(node.metadata_props.get(STACK_TRACE, ""))


def node_name(node: ir.Node) -> str:
    """Returns what a node is called: its own name, or that of its first result."""
    return node.name or (node.outputs[0].name if node.outputs else None) or ""


def node_place(node: ir.Node) -> str:
    """Says which node it is and which line it came from, for the place of a message."""
    line = node_line(node)
    return f"Node {node_name(node)} ({node.op_type})" + (f", from {line}" if line else "")


def lines_by_node(model: ir.Model) -> dict[str, str]:
    """Returns the source line of every node that has one, by its name and by its outputs' names.

    Some runtimes call a node by its name, and one that makes an output of the model by that.
    """
    lines: dict[str, str] = dict(model.meta.get(_LINES, {}))
    for node in model.graph.all_nodes():
        if line := node_line(node):
            names = (node.name, *(value.name for value in node.outputs))
            lines |= {name: line for name in names if name}
    return lines


def keep_lines(model: ir.Model) -> None:
    """Lets ``lines_by_node`` find the lines that there are, also once the nodes have none."""
    model.meta[_LINES] = lines_by_node(model)
