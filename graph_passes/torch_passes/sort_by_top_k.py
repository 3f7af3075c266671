"""Writes what is left of argsort and sort as a top-k with a constant k.

Before → after::

    argsort(x, d, descending)  →  topk(x, n, d, largest=descending)[1]
    sort(x, d, descending)     →  topk(x, n, d, largest=descending)
    sort(i, d)  on indices     →  topk of i as floats, cast back

ONNX has no sort; TopK (operator TopK-11: of equal values the lower index comes first) is a stable
one. torch's own top-k is not: a stable sort keeps its order of equal values in the artifact, not
in the rewritten torch graph. TensorRT's TopK takes no integers: indices are below 2²⁴, so float32
holds them exactly; other integers are left alone.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.calls import (
    argument,
    axis,
    dtype_of,
    is_call,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.editor import Editor, aten
from tokexport.graph_passes.torch_passes.infrastructure import TorchPass
from tokexport.graph_passes.torch_passes.token_indices import is_token_index

_ARGSORTS = (aten.argsort.default, aten.argsort.stable)
_SORTS = (aten.sort.default, aten.sort.stable, *_ARGSORTS)


class SortByTopK(TorchPass):
    """Turns sorts into top-k, which every target has."""

    name: ClassVar[str] = "sort by top-k"

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
    if not shape_of(source) or (as_float and not is_token_index(source)):
        return False
    keys = edit.call(aten._to_copy.default, source, dtype=torch.float32) if as_float else source
    along = axis(node)
    best = edit.call(
        aten.topk.default, keys, shape_of(source)[along], along, argument(node, "descending"), True
    )
    values, order = edit.item(best, 0), edit.item(best, 1)
    if is_call(node, *_ARGSORTS):
        edit.replace(node, order)
        return True
    if as_float:
        values = edit.call(aten._to_copy.default, values, dtype=dtype_of(source))
    for result in list(node.users):
        edit.replace(result, order if result.args[1] == 1 else values)
    return True
