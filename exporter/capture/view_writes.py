"""Rewrites writes into non-contiguous views, so that a traced graph can be decomposed.

Before → after, in the graph as it is traced::

    v = x.view(…).transpose(1, 2);  v.masked_fill_(m, 0)   →  v.copy_(masked_fill(v, m, 0))

Functionalisation computes what a view becomes, and brings it back to its base by the inverse of
each view. What ``masked_fill`` and others give is contiguous, and then no ``view`` of the base's
strides; a copy keeps the strides of what it is copied into.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._prims_common import is_contiguous_or_false
from torch.fx import GraphModule, Node


def write_by_copy(module: GraphModule) -> None:
    """Rewrites the writes into views of a traced graph and of the regions in it, in place."""
    for each in module.modules():
        if isinstance(each, GraphModule):
            for node in list(each.graph.nodes):
                _rewrite(each, node)
            each.recompile()


def _rewrite(module: GraphModule, node: Node) -> None:
    functional = _functional(node)
    if functional is None:
        return
    view = node.args[0]
    with module.graph.inserting_before(node):
        new = module.graph.call_function(functional, node.args, node.kwargs)
        copy = module.graph.call_function(torch.ops.aten.copy_.default, (view, new))
    new.meta, copy.meta = dict(node.meta), dict(node.meta)
    node.replace_all_uses_with(copy)
    module.graph.erase_node(node)


def _functional(node: Node) -> OpOverload[Any, Any] | None:
    """Returns what computes the value of a write into a view that is not contiguous."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload):
        return None
    name, overload = target._schema.name.removeprefix("aten::"), target._overloadname
    view = node.args[0] if node.args else None
    given = view.meta.get("val") if isinstance(view, Node) else None
    in_place = target.namespace == "aten" and name.endswith("_") and not name.startswith("_")
    written = node.meta.get("val")
    if not in_place or name == "copy_" or not isinstance(given, Tensor):
        return None
    if not isinstance(written, Tensor) or written.stride() != given.stride():
        return None  # it turns or squeezes the view, and writes no number
    if is_contiguous_or_false(given):  # of sizes that the data say, it may not be known
        return None
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    found: OpOverload[Any, Any] | None = getattr(packet, overload, None)
    return found
