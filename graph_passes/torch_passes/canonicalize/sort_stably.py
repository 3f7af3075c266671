"""Brings argsort and sort to the form that every target has: a stable sort of floats.

Before → after::

    argsort(x, d, descending)  →  sort(x, d, descending, stable)[1]
    sort(x, d, descending)     →  sort(x, d, descending, stable)
    sort(i, d)  on integers    →  sort of i as floats, cast back

ONNX has no sort. Its TopK (operator TopK-11: of equal values the lower index comes first) with a
constant k is a stable one, and so emission writes it; torch's own top-k is not stable, so it does
not stand for one here. TensorRT's TopK takes no integers: float32 holds those below 2²⁴ exactly,
others are left alone.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    dtype_of,
    is_call,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.match.integer_bounds import fits_float32

_ARGSORTS = (aten.argsort.default, aten.argsort.stable)
_SORTS = (aten.sort.default, aten.sort.stable, *_ARGSORTS)


class SortStably(TorchPass):
    """Turns sorts into stable sorts of floats."""

    name: ClassVar[str] = "sort stably"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many sorts it took."""
        changed = 0
        for node in list(edit.graph.nodes):
            if is_call(node, *_SORTS):
                with edit.before(node):
                    changed += _rewrite(edit, node)
        return changed


def _rewrite(edit: Editor, node: Node) -> bool:
    source = operand(node)
    as_float = not dtype_of(source).is_floating_point
    if not shape_of(source) or (as_float and not fits_float32(source)):
        return False
    if not as_float and node.target is aten.sort.stable and argument(node, "stable"):
        return False
    keys = edit.call(aten._to_copy.default, source, dtype=torch.float32) if as_float else source
    along = axis(node)
    descending = argument(node, "descending")
    ordered = edit.call(aten.sort.stable, keys, stable=True, dim=along, descending=descending)
    values, order = edit.item(ordered, 0), edit.item(ordered, 1)
    if is_call(node, *_ARGSORTS):
        edit.replace(node, order)
        return True
    if as_float:
        values = edit.call(aten._to_copy.default, values, dtype=dtype_of(source))
    for result in list(node.users):
        edit.replace(result, order if result.args[1] == 1 else values)
    return True
