"""Computes a value once where the graph computes it twice (common subexpressions).

Before → after::

    a1 = slice(x, 1, 0, end, 2); a2 = slice(x, 1, 0, end, 2)   →   one node, read by both

A merge written for values and for sizes slices, expands and gathers the same indices twice; the
recognisers compare operands by identity, so equal ones are made one here. Only operators of torch
and of this domain are taken, and of those none that draws random numbers or writes into its input.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any, ClassVar, Final

import torch
from torch._ops import OpOverload
from torch.fx import Node

from tokexport.graph_passes.ops.ops import NAMESPACE
from tokexport.graph_passes.torch_passes.graph.editor import Editor
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass

_NAMESPACES: Final = ("aten", "prims", NAMESPACE)


class ShareCommonSubexpressions(TorchPass):
    """Merges nodes that call the same operator on the same arguments."""

    name: ClassVar[str] = "share common subexpressions"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many nodes went."""
        first: dict[Hashable, Node] = {}
        changed = 0
        for node in list(edit.graph.nodes):
            if node.op != "call_function" or not _gives_one_answer(node.target):
                continue
            key = (node.target, _frozen(node.args), _frozen(node.kwargs))
            known = first.setdefault(key, node)
            if known is not node:
                node.replace_all_uses_with(known)
                edit.graph.erase_node(node)
                changed += 1
        return changed


def _gives_one_answer(target: object) -> bool:
    """Returns whether a call has no effect and the same result each time."""
    if target is operator.getitem:
        return True
    return (
        isinstance(target, OpOverload)
        and target.namespace in _NAMESPACES
        and not target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in target.tags
    )


def _frozen(arguments: Any) -> Hashable:
    """Returns a hashable copy in which 1, 1.0 and True stay apart, and so do 0.0 and -0.0."""
    if isinstance(arguments, list | tuple):
        return tuple(_frozen(part) for part in arguments)
    if isinstance(arguments, dict):
        return tuple((name, _frozen(part)) for name, part in sorted(arguments.items()))
    if isinstance(arguments, slice):
        return ("slice", _frozen((arguments.start, arguments.stop, arguments.step)))
    if isinstance(arguments, Node):
        return arguments
    return (type(arguments), repr(arguments))
