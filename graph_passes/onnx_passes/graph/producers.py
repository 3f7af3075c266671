"""What makes a value, and what alone reads it."""

from __future__ import annotations

import onnx_ir as ir


def made_by(value: ir.Value | None, operator: str, domain: str = "") -> ir.Node | None:
    """Returns the node that makes a value, where it is of that operator."""
    node = value.producer() if value is not None else None
    return node if node is not None and (node.domain, node.op_type) == (domain, operator) else None


def turned(value: ir.Value | None, *perm: int) -> ir.Value | None:
    """Returns what a value is the transpose of, in this order of axes."""
    node = made_by(value, "Transpose")
    return node.inputs[0] if node and tuple(node.attributes.get_ints("perm", ())) == perm else None


def only_reader(value: ir.Value) -> ir.Node | None:
    """Returns the only node that reads a value, where it is of a standard operator."""
    readers = [use.node for use in value.uses()]
    if len(readers) != 1 or value.is_graph_output() or readers[0].domain != "":
        return None
    return readers[0]


def comes_from(value: ir.Value, other: ir.Value) -> bool:
    """Returns whether a value is another, or is computed from it."""
    seen: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if one is other:
            return True
        node = one.producer()
        if one in seen or node is None:
            continue
        seen.add(one)
        waiting += [read for read in node.inputs if read is not None]
    return False


def maker_of(value: ir.Value | None) -> str:
    """Returns the operator that makes a value, for a message: ``Mul``, or what else it is."""
    node = value.producer() if value is not None else None
    if node is not None:
        return node.op_type
    return "nothing" if value is None else "a constant" if value.is_initializer() else "an input"
