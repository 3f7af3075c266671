"""Reads the calls of a traced graph: their results, and their arguments by name.

A call may leave an argument out or pass it by keyword; the operator's schema says where it is and
what it defaults to, so a pass asks for ``axis(node, "dim")`` and never for position 2.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch._ops import OpOverload
from torch.fx import Node

#: Under this key the meta of an input node holds its tensor, where that never changes.
CONSTANT: Final = "constant"


def value(node: Node) -> Any:
    """Returns the fake tensor, or the tuple of them, that a node gives."""
    return node.meta["val"]


def is_tensor(node: object) -> bool:
    """Returns whether the argument is a node that gives one tensor."""
    return isinstance(node, Node) and isinstance(node.meta.get("val"), torch.Tensor)


def shape_of(node: Node) -> tuple[int, ...]:
    """Returns the static shape of a node's tensor."""
    return tuple(int(size) for size in value(node).shape)


def dtype_of(node: Node) -> torch.dtype:
    """Returns the dtype of a node's tensor."""
    dtype: torch.dtype = value(node).dtype
    return dtype


def constant_of(node: object) -> torch.Tensor | None:
    """Returns the tensor of a buffer or constant that the graph only reads, or None."""
    found = node.meta.get(CONSTANT) if isinstance(node, Node) else None
    return found if isinstance(found, torch.Tensor) else None


def is_call(node: object, *targets: Any) -> bool:
    """Returns whether the argument is a call of one of the targets."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def operator_name(node: Node) -> str:
    """Returns what a call calls, without the overload: ``aten.gather``."""
    if isinstance(node.target, OpOverload):
        return str(node.target).rpartition(".")[0]
    return getattr(node.target, "__name__", str(node.target))


def base_name(target: Any) -> str:
    """Returns what a function or an operator is called, without its overload: ``gather``."""
    return str(getattr(target, "__name__", target)).partition(".")[0]


def argument(node: Node, name: str) -> Any:
    """Returns an argument of an operator's call, or the schema's default for it."""
    target = node.target
    if not isinstance(target, OpOverload):
        raise AssertionError(f"{node.name} calls {target}, which has no schema")
    for position, formal in enumerate(target._schema.arguments):
        if formal.name == name:
            if name in node.kwargs:
                return node.kwargs[name]
            return node.args[position] if position < len(node.args) else formal.default_value
    raise AssertionError(f"{target} has no argument '{name}'")


def operand(node: Node, name: str = "self") -> Node:
    """Returns the node that a call takes as its argument of that name."""
    given = argument(node, name)
    if not isinstance(given, Node):
        raise AssertionError(f"'{name}' of {node.name} is no node but {given!r}")
    return given


def operands(node: Node, name: str) -> list[Node]:
    """Returns the nodes that a call takes as one list."""
    given = argument(node, name)
    if not all(isinstance(part, Node) for part in given):
        raise AssertionError(f"'{name}' of {node.name} holds more than nodes: {given!r}")
    return list(given)


def axis(node: Node, name: str = "dim", *, of: Node | None = None) -> int:
    """Returns an axis as a non-negative number.

    Args:
        node: The call.
        name: The argument that says the axis.
        of: The tensor whose axis it is; the call's ``self`` without it.
    """
    return normal_axis(argument(node, name), len(shape_of(of or operand(node))))


def normal_axis(number: int, rank: int) -> int:
    """Returns a possibly negative axis of a tensor of that rank as a non-negative one."""
    return number % max(rank, 1)
