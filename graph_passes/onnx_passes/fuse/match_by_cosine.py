"""Fuses the operators of ToMe up to its match.

Before → after, k (B, H, N, D) the keys, which lie in rows (B, N, ·)::

    m = ReduceMean(k, 1);  u = m / ‖m‖;  a = u[:, i::s];  b = u[:, j::s]
    bipartite_match(a bᵀ)      →  cosine_match(rows; heads=H, depth=D, start, a_start=i, b_start=j)

The first rows of a may be protected, as ToMe protects its class token, by scores that are written
over with -∞. Source: ToMe (Bolya et al. 2023), section 3.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.heads_in_rows import HeadsInRows, heads_in_rows
from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import made_by, maker_of, turned
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import integers_of, shape_of
from tokexport.graph_passes.onnx_passes.graph.token_sets import (
    TokenSet,
    divided_by_length,
    two_sets,
)
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason


class MatchByCosine(NodePass):
    """Rewrites matches on the cosine between two sets of the mean keys."""

    name = "match by cosine"
    comes_before = ("cosine merge norm",)
    domain = DOMAIN
    op_types = ("bipartite_match",)

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches scores that are products of two sets of the mean keys, divided by length."""
        scores = node.inputs[0]
        if scores is None or scores.dtype != ir.DataType.FLOAT:
            return Reason("its scores are not of float32")
        scores, protected = _without_protected(scores)
        product = made_by(scores, "MatMul")
        if product is None:
            return Reason(f"its scores come from {maker_of(scores)}, not from a product")
        sets = two_sets(product.inputs[0], turned(product.inputs[1], 0, 2, 1))
        if sets is None:
            return Reason("its scores are not between every so many of the same tokens")
        directions = divided_by_length(sets[0].tokens)
        if directions is None:
            return Reason(f"its tokens come from {maker_of(sets[0].tokens)}, not divided by length")
        heads = _mean_of_heads(directions)
        if heads is None:
            return Reason("its tokens are no mean over heads that lie side by side in rows")
        return partial(_rewrite, node, heads, *sets, protected)


def _rewrite(node: ir.Node, heads: HeadsInRows, a: TokenSet, b: TokenSet, protected: int) -> None:
    new = Replacement(node)
    first = new.call(
        "cosine_match",
        heads.rows,
        domain=DOMAIN,
        outputs=3,
        heads=[heads.heads],
        depth=[heads.depth],
        start=[heads.start],
        a_start=[a.start],
        b_start=[b.start],
        step=[a.step],
        blocked=[protected],
        r=list(node.attributes.get_ints("r")),
    )
    made = first.producer()
    assert made is not None
    new.put(*made.outputs)


def _without_protected(scores: ir.Value) -> tuple[ir.Value, int]:
    """Returns the scores before their first rows were written over with -∞, and how many were."""
    node = made_by(scores, "ScatterElements")
    if node is None or node.attributes.get_string("reduction", "none") != "none":
        return scores, 0
    before, where, what = node.inputs
    shape = shape_of(before) if before is not None else None
    index = ir.convenience.get_const_tensor(where) if where is not None else None
    values = ir.convenience.get_const_tensor(what) if what is not None else None
    if before is None or shape is None or index is None or values is None:
        return scores, 0
    rows = index.numpy()
    count = rows.shape[1] if rows.ndim == 3 else 0
    full = (shape[0], count, shape[2])
    in_order = np.arange(count)[None, :, None]
    if (
        node.attributes.get_int("axis", 0) % len(shape) != 1
        or rows.shape != full
        or not np.array_equal(rows, np.broadcast_to(in_order, full))
        or not np.all(np.isneginf(values.numpy()))
    ):
        return scores, 0
    return before, count


def _mean_of_heads(value: ir.Value | None) -> HeadsInRows | None:
    """Returns the place of the heads whose mean is a value (B, N, D)."""
    mean = made_by(value, "ReduceMean")
    if mean is None or mean.attributes.get_int("keepdims", 1) != 0:
        return None
    axes = integers_of(mean.inputs[1]) if len(mean.inputs) > 1 else None
    return heads_in_rows(mean.inputs[0]) if axes == (1,) else None
