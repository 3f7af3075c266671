"""Fuses ToMe's match, its merge and the layer norm after them.

Before → after::

    kept, src, dst = cosine_match(rows)
    y, n = merge_by_size(x, s, kept, src, dst)   →   y, n, z = cosine_merge_norm(rows, x, s, w, b)
    z = layer_norm(y, w, b)

Threads are then sent for once and not three times; each normalises rows that it merged. It runs
behind ``ChooseForms``, which may have given the merge another form. Source: ToMe (Bolya et al.
2023), section 3.
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import made_by, maker_of
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason


class CosineMergeNorm(NodePass):
    """Rewrites the layer norm of what was merged by cosine."""

    name = "cosine merge norm"
    domain = DOMAIN
    op_types = ("layer_norm",)
    sorts = True  # some readers of what was merged come before its norm

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches a norm of tokens that one cosine match merged, and that alone reads the match."""
        merge = made_by(node.inputs[0], "merge_by_size", DOMAIN)
        if merge is None or node.inputs[0] is not merge.outputs[0]:
            return None  # other rows, or the sizes
        match = made_by(merge.inputs[2], "cosine_match", DOMAIN)
        if match is None:
            return Reason(f"its rows are merged by {maker_of(merge.inputs[2])}, not by cosine")
        reason = _misfit(match, merge, node)
        return reason or partial(_rewrite, match, merge, node)


def _rewrite(match: ir.Node, merge: ir.Node, norm: ir.Node) -> None:
    attributes = {
        name: attribute.value
        for node in (match, merge, norm)
        for name, attribute in node.attributes.items()
    }
    rows, (x, size) = match.inputs[0], merge.inputs[:2]
    new = Replacement(norm)
    joined = new.call(
        "cosine_merge_norm", rows, x, size, *norm.inputs[1:], domain=DOMAIN, outputs=3, **attributes
    ).producer()
    assert joined is not None
    new.put(joined.outputs[2])
    for before, after in zip(merge.outputs, joined.outputs[:2], strict=True):
        new.move_readers(before, after)
    graph = merge.graph
    assert graph is not None
    graph.remove((merge, match), safe=True)


def _misfit(match: ir.Node, merge: ir.Node, norm: ir.Node) -> Reason | None:
    """Returns why three nodes do not become one; None if they do."""
    rows, x = match.inputs[0], merge.inputs[0]
    assert rows is not None
    assert x is not None
    rows_shape, shape = shape_of(rows), shape_of(x)
    if list(merge.inputs[2:]) != list(match.outputs):
        return Reason("its rows are merged by the indices of several matches")
    if any(len(index.uses()) != 1 for index in match.outputs):
        return Reason("what else was matched is read too")
    if any(value.is_graph_output() for value in (*match.outputs, *merge.outputs)):
        return Reason("the match, or what was merged, is an output of the model")
    weights = norm.inputs[1:]
    if any(v is None or ir.convenience.get_const_tensor(v) is None for v in weights):
        return Reason("its weights are computed")
    for name in ("a_start", "b_start", "step"):
        if match.attributes.get_ints(name) != merge.attributes.get_ints(name):
            return Reason("its rows are merged between other sets than were matched")
    if shape is None or rows_shape is None or rows_shape[:2] != shape[:2]:
        return Reason(f"it matches rows {rows_shape} and merges tokens {shape}")
    return None
