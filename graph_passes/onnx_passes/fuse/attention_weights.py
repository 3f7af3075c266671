"""Makes the softmax of attention read queries and keys where a projection wrote them.

Before → after, for q and k that are only moved between a projection and their product; the
softmaxes that are left have other readers than the product with the values::

    Softmax(MatMul(q, kᵀ) · scale)                   q, k (B, H, N, D), views of (B, N, ·)
    →  attention_weights(qk, qk; scale, q_start=0, k_start=H·D)
    Softmax(MatMul(q, kᵀ) · scale + bias[:, None, None, :])    →  sized_attention_weights(…, bias)
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.heads_in_rows import HeadsInRows, heads_in_rows
from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import made_by, maker_of, turned
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import number_of, shape_of, view_of
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason


class AttentionWeights(NodePass):
    """Rewrites the softmax of attention, where it is a result of its own."""

    name = "attention weights"
    comes_before = ("attention by size", "fusion criteria")
    op_types = ("Softmax",)

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches the softmax (B, H, Nq, N) of products of heads that are views of rows."""
        logits, shape = node.inputs[0], shape_of(node.outputs[0])
        if logits is None or logits.dtype != ir.DataType.FLOAT:
            return Reason("it is not of float32")
        if shape is None or len(shape) != 4:
            return Reason(f"it is of {shape}, not of heads (B, H, Nq, N)")
        if (axis := node.attributes.get_int("axis", -1) % 4) != 3:
            return Reason(f"it runs over axis {axis}, not over the keys")
        logits, sizes = _without_bias(logits, shape)
        scaled, scale = _without_scale(logits)
        product = made_by(scaled, "MatMul")
        if product is None:
            return Reason(f"its logits come from {maker_of(scaled)}, not from a product")
        q = heads_in_rows(product.inputs[0])
        k = heads_in_rows(turned(product.inputs[1], 0, 1, 3, 2))
        if q is None or k is None:
            name = "queries" if q is None else "keys"
            return Reason(f"its {name} are not heads side by side in rows")
        if (q.heads, q.depth) != (k.heads, k.depth):
            return Reason("its queries and keys have heads of different numbers or widths")
        if {(shape_of(one.rows) or ())[:1] for one in (q, k)} != {shape[:1]}:
            return Reason("its queries and keys are not of the same images")
        return partial(_rewrite, node, q, k, sizes, scale)


def _rewrite(
    node: ir.Node, q: HeadsInRows, k: HeadsInRows, sizes: ir.Value | None, scale: float
) -> None:
    new = Replacement(node)
    new.put(
        new.call(
            "attention_weights" if sizes is None else "sized_attention_weights",
            q.rows,
            k.rows,
            *([] if sizes is None else [sizes]),
            domain=DOMAIN,
            scale=scale,
            heads=[q.heads],
            depth=[q.depth],
            q_start=[q.start],
            k_start=[k.start],
        )
    )


def _without_bias(logits: ir.Value, shape: tuple[int, ...]) -> tuple[ir.Value, ir.Value | None]:
    """Returns logits (B, H, Nq, N) before a bias (B, N) of each key was added, and the bias."""
    added = made_by(logits, "Add")
    if added is None:
        return logits, None
    for before, bias in (added.inputs, added.inputs[::-1]):
        view = view_of(bias) if bias is not None else None
        if before is None or view is None or shape_of(before) != shape:
            continue
        if view.is_whole((shape[0], 1, 1, shape[3])):
            whole = shape_of(view.base) == (shape[0], shape[3])
            return (before, view.base) if whole else (logits, None)
    return logits, None


def _without_scale(logits: ir.Value) -> tuple[ir.Value, float]:
    """Returns logits before they were multiplied by one number, and the number."""
    scaled = made_by(logits, "Mul")
    if scaled is None:
        return logits, 1.0
    for before, factor in (scaled.inputs, scaled.inputs[::-1]):
        number = number_of(factor)
        if before is not None and number is not None and before.shape == logits.shape:
            return before, number
    return logits, 1.0
