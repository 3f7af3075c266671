"""Reads the minus of a number, also of a zero."""

from __future__ import annotations

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import dtype_of
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten


def has_minus(edit: Editor, part: Node) -> Node:
    """Returns which numbers have a minus; that of -0 is in its reciprocal, and NaN has none."""
    if dtype_of(part) == torch.bool:
        return edit.call(aten.zeros_like.default, part)
    below = edit.call(aten.lt.Scalar, part, 0)
    if not dtype_of(part).is_floating_point:
        return below
    turned = edit.call(aten.reciprocal.default, part)
    return edit.call(aten.logical_or.default, below, edit.call(aten.lt.Scalar, turned, 0))


def as_type(edit: Editor, part: Node, wanted: torch.dtype) -> Node:
    """Inserts a cast, or nothing where the type is that already."""
    if dtype_of(part) == wanted:
        return part
    return edit.call(aten._to_copy.default, part, dtype=wanted)
