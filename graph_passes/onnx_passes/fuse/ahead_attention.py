"""Joins the product of attention from before a merge and the values from behind it.

Before → after, P (B, H, N, N) the softmax, v (B, M, ·) rows of the merged tokens' values::

    o = Reshape(Transpose(MatMul(P, heads(gather_tokens(v, places)))))
    merge_both_ways_by_weight(o, share, …)[0]      →  ahead_attention(P, v, places, share, …)

Source: MCTF (Lee et al. 2024), section 3, "one-step-ahead attention".
"""

from __future__ import annotations

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.heads_in_rows import heads_in_rows
from tokexport.graph_passes.onnx_passes.graph.neighbours import made_by, only_reader, turned
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of, view_of
from tokexport.graph_passes.onnx_passes.graph.token_sets import SPLIT
from tokexport.graph_passes.ops.onnx_functions import DOMAIN


class AheadAttention(ir.passes.InPlacePass):
    """Rewrites products with attention whose rows merge by weight."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        changed = False
        for node in list(model.graph):
            if node.domain == DOMAIN and node.op_type == "merge_both_ways_by_weight":
                changed |= _rewrite(node)
        return ir.passes.PassResult(model, modified=changed)


def _rewrite(node: ir.Node) -> bool:
    rows, share = node.inputs[:2]
    if rows is None or node.outputs[1].uses() or node.outputs[1].is_graph_output():
        return False
    joined = made_by(rows, "Reshape")
    attended_heads = turned(joined.inputs[0], 0, 2, 1, 3) if joined is not None else None
    product = made_by(attended_heads, "MatMul")
    if product is None:
        return False
    weights, values = product.inputs
    heads = heads_in_rows(values)
    shape = shape_of(weights) if weights is not None else None
    if heads is None or shape is None or weights is None or weights.dtype != ir.DataType.FLOAT:
        return False
    if len(shape) != 4 or shape[1] != heads.heads or shape[2] != shape[3]:
        return False
    if shape_of(rows) != (shape[0], shape[2], heads.heads * heads.depth):
        return False
    spread = made_by(heads.rows, "gather_tokens", DOMAIN)
    view = view_of(spread.inputs[0]) if spread is not None and spread.inputs[0] else None
    base = shape_of(view.base) if view is not None else None
    if spread is None or view is None or base is None or len(base) != 3 or base[0] != shape[0]:
        return False
    if view.shape[:2] != base[:2] or view.strides[1:] != (base[2], 1):
        return False
    if view.offset + view.shape[2] > base[2] or (
        base[0] > 1 and view.strides[0] != base[1] * base[2]
    ):
        return False
    last = _last(node)
    new = Replacement(last)
    attended = new.call(
        "ahead_attention",
        weights,
        view.base,
        spread.inputs[1],
        share,
        *node.inputs[2:],
        domain=DOMAIN,
        outputs=1,
        heads=[heads.heads],
        depth=[heads.depth],
        v_start=[view.offset + heads.start],
        **{name: list(node.attributes.get_ints(name)) for name in SPLIT},
    )
    new.put(*([attended] if last is not node else [attended, None]))
    return True


def _last(node: ir.Node) -> ir.Node:
    """Returns the last of the reshapes behind a node that give its rows as they were."""
    value, last = node.outputs[0], node
    reader = only_reader(value)
    while reader is not None and reader.op_type == "Reshape":
        if shape_of(reader.outputs[0]) == shape_of(value):
            last = reader
        reader = only_reader(reader.outputs[0])
    return last
