"""Drops attention masks that let everything through.

Before → after::

    mask = (arange(N) >= 0).expand(B, H, N, N)          scaled_dot_product_attention(q, k, v)
    scaled_dot_product_attention(q, k, v, mask)    →

Libraries build such a mask for models that need none (transformers makes one for every ViT). Only
a boolean mask that no input or weight reaches is computed here, and only when it is True everywhere
does it go.
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar, Final

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from tokexport.graph_passes.torch_passes.calls import (
    argument,
    dtype_of,
    is_call,
    is_tensor,
    shape_of,
)
from tokexport.graph_passes.torch_passes.editor import Editor, aten
from tokexport.graph_passes.torch_passes.infrastructure import TorchPass

#: Elements above which a value is not computed while compiling.
LARGEST: Final = 1 << 24


class DropFullMasks(TorchPass):
    """Takes constant masks without effect out of fused attention."""

    name: ClassVar[str] = "drop full masks"
    comes_before: ClassVar[tuple[str, ...]] = ("recognise attention",)

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many masks went."""
        changed = 0
        known: dict[Node, Any] = {}
        for node in edit.graph.nodes:
            if not is_call(node, aten.scaled_dot_product_attention.default):
                continue
            mask = argument(node, "attn_mask")
            if not is_tensor(mask) or dtype_of(mask) != torch.bool:
                continue
            constant = _constant(mask, known)
            if constant is None or not bool(constant.all()):
                continue
            if len(node.args) > 3:
                node.args = (*node.args[:3], None, *node.args[4:])
            else:
                node.kwargs = {**node.kwargs, "attn_mask": None}
            changed += 1
        return changed


def _constant(node: Node, known: dict[Node, Any]) -> Any:
    """Computes a value that no input or weight reaches; None where one does."""
    if node in known:
        return known[node]
    known[node] = None
    if node.op != "call_function" or getattr(node.target, "namespace", "") != "aten":
        return None
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return None
    if not is_tensor(node) or prod(shape_of(node)) > LARGEST:
        return None
    values = {operand: _constant(operand, known) for operand in node.all_input_nodes}
    if any(value is None for value in values.values()):
        return None
    args, kwargs = map_arg((node.args, node.kwargs), lambda operand: values[operand])
    target: Any = node.target
    known[node] = target(*args, **kwargs)
    return known[node]
