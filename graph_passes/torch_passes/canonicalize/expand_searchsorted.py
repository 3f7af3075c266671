"""Writes a binary search as a count, which is exact and needs no loop.

Before → after, with b sorted along its last axis::

    searchsorted(b, v)               →  Σ_j (b[j] <  v)
    searchsorted(b, v, right=True)   →  Σ_j (b[j] <= v)
    bucketize(v, b)                  →  the same

torch.searchsorted: the smallest i with b[i - 1] < v <= b[i]. ONNX has no search.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import argument, is_call, operand, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass


class ExpandSearchsorted(TorchPass):
    """Turns searchsorted and bucketize into sums of comparisons."""

    name: ClassVar[str] = "expand searchsorted"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many searches it changed."""
        changed = 0
        for node in list(edit.graph.nodes):
            with edit.before(node):
                if is_call(node, aten.searchsorted.Tensor):
                    new = _counted(edit, node, operand(node, "sorted_sequence"))
                elif is_call(node, aten.bucketize.Tensor):
                    new = _counted(edit, node, operand(node, "boundaries"))
                else:
                    new = None
            if new is not None:
                edit.replace(node, new)
                changed += 1
        return changed


def _counted(edit: Editor, node: Node, edges: Node) -> Node | None:
    """Inserts the count; edges are (…, M) or (M,), values (…, K)."""
    named = node.target is aten.searchsorted.Tensor
    if named and argument(node, "sorter") is not None:
        return None
    values = operand(node)
    right = argument(node, "right") or (named and argument(node, "side") == "right")
    if len(shape_of(edges)) > 1:
        edges = edit.call(aten.unsqueeze.default, edges, -2)
    column = edit.call(aten.unsqueeze.default, values, -1)
    compare = aten.le.Tensor if right else aten.lt.Tensor
    hits = edit.call(compare, edges, column)
    dtype = torch.int32 if argument(node, "out_int32") else torch.int64
    return edit.call(aten.sum.dim_IntList, hits, [-1], dtype=dtype)
