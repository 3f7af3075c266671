"""Makes attention take the sizes of its tokens, where their logarithms are added to the keys.

Before → after, s (B, N, 1) the sizes::

    rows_sized_attention(q, k, v, log(s)[:, :, 0])    →  rows_attention_by_size(q, k, v, s)
    sized_attention_weights(q, k, log(s[:, :, 0]))    →  attention_weights_by_size(q, k, s)

The kernel takes the logarithms on the way, which saves two operators of N numbers a layer. Source:
proportional attention, ToMe (Bolya et al. 2023), section 3.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import made_by, maker_of
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of, view_of
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason

_NAMES: Final = {
    "rows_sized_attention": "rows_attention_by_size",
    "sized_attention_weights": "attention_weights_by_size",
}


class AttentionBySize(NodePass):
    """Rewrites attention with the logarithm of sizes."""

    name = "attention by size"
    domain = DOMAIN
    op_types = tuple(_NAMES)

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches a bias (B, N) that holds the logarithms of sizes (B, N, 1), in their order."""
        log_size = node.inputs[-1]
        bias = _all_of(log_size)
        logarithm = made_by(bias, "Log")
        if log_size is None or bias is None or logarithm is None:
            return Reason(f"its bias of keys comes from {maker_of(bias)}, not from a logarithm")
        size, shape = _all_of(logarithm.inputs[0]), shape_of(log_size)
        if size is None or shape is None or shape_of(size) != (*shape, 1):
            return Reason("its bias is of no sizes (B, N, 1) in their order")
        return partial(_rewrite, node, size)


def _rewrite(node: ir.Node, size: ir.Value) -> None:
    new = Replacement(node)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    new.put(new.call(_NAMES[node.op_type], *node.inputs[:-1], size, domain=DOMAIN, **attributes))


def _all_of(value: ir.Value | None) -> ir.Value | None:
    """Returns the value whose elements another value holds, in order and in any shape."""
    view = view_of(value) if value is not None else None
    return view.base if view is not None and view.is_whole(view.shape) else value
