"""Joins ToMe's match, its merge and the layer norm behind them.

Before → after::

    kept, src, dst = cosine_match(rows)
    y, n = merge_by_size(x, s, kept, src, dst)   →   y, n, z = cosine_merge_norm(rows, x, s, w, b)
    z = layer_norm(y, w, b)

Threads are then sent for once and not three times; each normalises rows that it merged. It runs
behind ``ChooseForms``, which may have given the merge another form. Source: ToMe (Bolya et al.
2023), section 3.
"""

from __future__ import annotations

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.neighbours import made_by
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.ops.onnx_functions import DOMAIN


class CosineMergeNorm(ir.passes.InPlacePass):
    """Rewrites the layer norm of what was merged by cosine."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        changed = False
        for node in list(model.graph):
            if node.domain == DOMAIN and node.op_type == "layer_norm":
                changed |= _rewrite(node)
        if changed:
            model.graph.sort()  # some readers of what was merged came before its norm
        return ir.passes.PassResult(model, modified=changed)


def _rewrite(norm: ir.Node) -> bool:
    merge = made_by(norm.inputs[0], "merge_by_size", DOMAIN)
    match = made_by(merge.inputs[2], "cosine_match", DOMAIN) if merge is not None else None
    if merge is None or match is None or not _belong_together(match, merge, norm):
        return False
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
    return True


def _belong_together(match: ir.Node, merge: ir.Node, norm: ir.Node) -> bool:
    rows, x = match.inputs[0], merge.inputs[0]
    assert rows is not None
    assert x is not None
    rows_shape, shape = shape_of(rows), shape_of(x)
    return (
        norm.inputs[0] is merge.outputs[0]  # and not the sizes
        and list(merge.inputs[2:]) == list(match.outputs)
        and all(len(index.uses()) == 1 for index in match.outputs)
        and not any(value.is_graph_output() for value in (*match.outputs, *merge.outputs))
        and all(
            value is not None and ir.convenience.get_const_tensor(value) is not None
            for value in norm.inputs[1:]
        )
        and all(
            match.attributes.get_ints(name) == merge.attributes.get_ints(name)
            for name in ("a_start", "b_start", "step")
        )
        and shape is not None
        and rows_shape is not None
        and rows_shape[:2] == shape[:2]
    )
