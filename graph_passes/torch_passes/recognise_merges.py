"""Recognises the join of kept rows and merged rows and makes it one ``merge_tokens``.

Before → after::

    cat([gather_tokens(a, kept),                                    →  merge_tokens(a, b, kept,
         scatter_tokens(b, dst, gather_tokens(a, src), "sum")], 1)          src, dst, "sum")

Source: the merge of ToMe (Bolya et al. 2023, section 3, figure 2).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.calls import (
    argument,
    axis,
    is_call,
    operand,
    operands,
    shape_of,
)
from tokexport.graph_passes.torch_passes.editor import Editor, aten
from tokexport.graph_passes.torch_passes.infrastructure import TorchPass


class RecogniseMerges(TorchPass):
    """Finds concatenations of kept tokens and of tokens that took others in."""

    name: ClassVar[str] = "recognise merges"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many merges there are."""
        changed = 0
        for node in list(edit.graph.nodes):
            parts = _parts(node)
            if parts is None:
                continue
            rest, merged = parts
            with edit.before(node):
                new = edit.call(
                    torch.ops.tokexport.merge_tokens.default,
                    operand(rest, "x"),
                    operand(merged, "dst"),
                    operand(rest, "index"),
                    operand(operand(merged, "src"), "index"),
                    operand(merged, "index"),
                    argument(merged, "mode"),
                )
            edit.replace(node, new)
            changed += 1
        return changed


def _parts(node: Node) -> tuple[Node, Node] | None:
    """Returns the gather and the scatter that a call joins, where they make up a merge."""
    domain = torch.ops.tokexport
    if not is_call(node, aten.cat.default) or len(operands(node, "tensors")) != 2:
        return None
    rest, merged = operands(node, "tensors")
    if len(shape_of(node)) != 3 or axis(node, of=node) != 1:
        return None
    if not is_call(rest, domain.gather_tokens.default):
        return None
    if not is_call(merged, domain.scatter_tokens.default) or len(merged.users) != 1:
        return None
    moved = operand(merged, "src")
    if not is_call(moved, domain.gather_tokens.default):
        return None
    if operand(moved, "x") is not operand(rest, "x") or argument(merged, "mode") == "none":
        return None
    return (rest, merged) if argument(merged, "include_self") else None
