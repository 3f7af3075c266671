"""Lets attention take the sizes of its tokens, where their logarithm is what is added to each key.

Before → after, s (B, N, 1) the sizes::

    rows_sized_attention(q, k, v, log(s)[:, :, 0])    →  rows_attention_by_size(q, k, v, s)
    sized_attention_weights(q, k, log(s[:, :, 0]))    →  attention_weights_by_size(q, k, s)

The kernel takes the logarithms on the way, which saves two operators of N numbers a layer. Source:
proportional attention, ToMe (Bolya et al. 2023), section 3.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.neighbours import made_by
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of, view_of
from tokexport.graph_passes.ops.onnx_functions import DOMAIN

_NAMES: Final = {
    "rows_sized_attention": "rows_attention_by_size",
    "sized_attention_weights": "attention_weights_by_size",
}


class AttentionBySize(ir.passes.InPlacePass):
    """Rewrites attention with the logarithm of sizes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        changed = False
        for node in list(model.graph):
            if node.domain == DOMAIN and node.op_type in _NAMES:
                changed |= _rewrite(node)
        return ir.passes.PassResult(model, modified=changed)


def _rewrite(node: ir.Node) -> bool:
    *heads, log_size = node.inputs
    size = _size_behind(log_size)
    if size is None:
        return False
    new = Replacement(node)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    new.put(new.call(_NAMES[node.op_type], *heads, size, domain=DOMAIN, **attributes))
    return True


def _size_behind(log_size: ir.Value | None) -> ir.Value | None:
    """Returns the sizes (B, N, 1) that a value (B, N) holds the logarithms of, in their order."""
    logarithm = made_by(_all_of(log_size), "Log")
    size = _all_of(logarithm.inputs[0]) if logarithm is not None else None
    if log_size is None or size is None:
        return None
    shape = shape_of(log_size)
    return size if shape is not None and shape_of(size) == (*shape, 1) else None


def _all_of(value: ir.Value | None) -> ir.Value | None:
    """Returns the value that another is all of, in its order and any shape."""
    view = view_of(value) if value is not None else None
    return view.base if view is not None and view.is_whole(view.shape) else value
