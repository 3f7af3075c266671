"""Recognises sums of rows divided by their number as means.

Before → after::

    total = scatter_tokens(b, index, x, "sum", True)
    terms = scatter_tokens(ones, index, ones, "sum", True)
    total / terms        →  scatter_tokens(b, index, x, "mean", True)

in any shape that keeps a row one row. That is how the mean is defined (torch.Tensor.scatter_reduce,
the row that was there included); a weighted mean, divided by the sizes, is none.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import argument, is_call, operand, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.match.constant_values import ConstantValues

_RESHAPES = (aten.reshape.default, aten.view.default, aten.unsqueeze.default)


class RecogniseMeans(TorchPass):
    """Finds divisions of scattered rows by their number."""

    name: ClassVar[str] = "recognise means"
    comes_before: ClassVar[tuple[str, ...]] = ("recognise merges",)

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many means there are."""
        changed = 0
        constants = ConstantValues()
        for node in list(edit.graph.nodes):
            if not is_call(node, aten.div.Tensor):
                continue
            with edit.before(node):
                new = _mean(edit, node, constants)
            if new is not None:
                edit.replace(node, new)
                changed += 1
        return changed


def _mean(edit: Editor, node: Node, constants: ConstantValues) -> Node | None:
    if not all(isinstance(part, Node) for part in node.args[:2]):
        return None
    shape = shape_of(node)
    total, terms = _summed(operand(node)), _summed(operand(node, "other"))
    if total is None or terms is None or shape_of(operand(node)) != shape:
        return None
    if shape[-1:] != shape_of(total)[-1:] or shape_of(operand(node, "other")) != (*shape[:-1], 1):
        return None  # another shape than rows over their number, one for each row
    if shape_of(terms) != (*shape_of(total)[:2], 1):
        return None
    index = operand(total, "index")
    if operand(terms, "index") is not index or not _is_read_once(operand(node), total):
        return None
    for part in ("dst", "src"):
        ones = constants.of(operand(terms, part))
        if ones is None or not bool((ones == 1).all()):
            return None
    mean = edit.call(
        torch.ops.tokexport.scatter_tokens.default,
        operand(total, "dst"),
        index,
        operand(total, "src"),
        "mean",
        True,
    )
    return edit.view(mean, shape)


def _summed(node: Node) -> Node | None:
    """Returns the sum of rows that a value is, in whatever shape."""
    while is_call(node, *_RESHAPES):
        node = operand(node)
    if not is_call(node, torch.ops.tokexport.scatter_tokens.default):
        return None
    return node if argument(node, "mode") == "sum" and argument(node, "include_self") else None


def _is_read_once(node: Node, source: Node) -> bool:
    """Returns whether no value between ``source`` and a value's one reader is read twice."""
    while len(node.users) == 1 and node is not source:
        node = operand(node)
    return node is source and len(node.users) == 1
