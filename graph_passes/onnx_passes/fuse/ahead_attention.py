"""Fuses attention from before a merge with the values from after it.

Before → after, P (B, H, N, N) the softmax, v (B, M, ·) rows of the merged tokens' values::

    o = Reshape(Transpose(MatMul(P, heads(gather_tokens(v, places)))))
    merge_both_ways_by_weight(o, share, …)[0]      →  ahead_attention(P, v, places, share, …)

Source: MCTF (Lee et al. 2024), section 3, "one-step-ahead attention".
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.heads_in_rows import HeadsInRows, heads_in_rows
from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import (
    made_by,
    maker_of,
    only_reader,
    turned,
)
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import View, shape_of, view_of
from tokexport.graph_passes.onnx_passes.graph.token_sets import SPLIT
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason


class AheadAttention(NodePass):
    """Rewrites products with attention whose rows merge by weight."""

    name = "ahead attention"
    domain = DOMAIN
    op_types = ("merge_both_ways_by_weight",)

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches merged rows that are the product of attention and spread values."""
        rows = node.inputs[0]
        joined = made_by(rows, "Reshape")
        attended_heads = turned(joined.inputs[0], 0, 2, 1, 3) if joined is not None else None
        product = made_by(attended_heads, "MatMul")
        if rows is None or product is None:
            return None  # tokens, and not what attention made of them
        weights, values = product.inputs
        heads = heads_in_rows(values)
        if node.outputs[1].uses() or node.outputs[1].is_graph_output():
            return Reason("the sums of its weights are read too")
        if weights is None or weights.dtype != ir.DataType.FLOAT:
            return Reason("its attention is not of float32")
        if heads is None:
            return Reason("its values are not heads side by side in rows")
        shape = shape_of(weights) or ()
        if len(shape) != 4 or shape[1] != heads.heads or shape[2] != shape[3]:
            return Reason(f"its attention {shape} is not one of each token to each, (B, H, N, N)")
        if shape_of(rows) != (shape[0], shape[2], heads.heads * heads.depth):
            return Reason(f"its rows {shape_of(rows)} are not all heads of all tokens")
        spread = made_by(heads.rows, "gather_tokens", DOMAIN)
        if spread is None or spread.inputs[0] is None:
            return Reason(f"its values come from {maker_of(heads.rows)}, not from merged tokens")
        view = view_of(spread.inputs[0])
        if view is None or not _are_channels(view, shape[0]):
            return Reason("the values that it spreads are not channels of rows")
        return partial(_rewrite, node, weights, heads, spread, view)


def _are_channels(view: View, images: int) -> bool:
    """Returns whether a view is of neighbouring channels of all rows (B, N, ·)."""
    base = shape_of(view.base)
    return (
        base is not None
        and len(base) == 3
        and base[0] == images
        and view.shape[:2] == base[:2]
        and view.strides[1:] == (base[2], 1)
        and view.offset + view.shape[2] <= base[2]
        and (base[0] == 1 or view.strides[0] == base[1] * base[2])
    )


def _rewrite(
    node: ir.Node, weights: ir.Value, heads: HeadsInRows, spread: ir.Node, view: View
) -> None:
    last = _last(node)
    new = Replacement(last)
    attended = new.call(
        "ahead_attention",
        weights,
        view.base,
        spread.inputs[1],
        *node.inputs[1:],
        domain=DOMAIN,
        outputs=1,
        heads=[heads.heads],
        depth=[heads.depth],
        v_start=[view.offset + heads.start],
        **{name: list(node.attributes.get_ints(name)) for name in SPLIT},
    )
    new.put(*([attended] if last is not node else [attended, None]))


def _last(node: ir.Node) -> ir.Node:
    """Returns the last of the reshapes behind a node that give its rows as they were."""
    value, last = node.outputs[0], node
    reader = only_reader(value)
    while reader is not None and reader.op_type == "Reshape":
        if shape_of(reader.outputs[0]) == shape_of(value):
            last = reader
        reader = only_reader(reader.outputs[0])
    return last
