"""Joins what MCTF reads of attention and sizes: how rare each token is, and its share in a merge.

Before → after, P (B, H, Nq, N) the softmax and s (B, N, 1) the sizes::

    received = ReduceMean(P, (1, 2))
    rare = share_of_largest(1 / received) ^ p · share_of_largest(1 / s) ^ q
    share = received · s / max(s)
    →  rare, share = fusion_criteria(P, s; info_power=p, size_power=q)

Source: MCTF (Lee et al. 2024), section 3.
"""

from __future__ import annotations

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.neighbours import made_by
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import (
    integers_of,
    number_of,
    shape_of,
    view_of,
)
from tokexport.graph_passes.ops.onnx_functions import DOMAIN


class FusionCriteria(ir.passes.InPlacePass):
    """Rewrites the criteria of tokens where both that are computed of them are read."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        changed = False
        for node in list(model.graph):
            if node.domain == "" and node.op_type == "Mul":
                changed |= _rewrite(node)
        if changed:
            model.graph.sort()  # a share may have come before the term that is given with it now
        return ir.passes.PassResult(model, modified=changed)


def _rewrite(node: ir.Node) -> bool:
    info, small = _power(node.inputs[0]), _power(node.inputs[1])
    if info is None or small is None or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    received, sizes = info[0], view_of(small[0])
    mean = made_by(received, "ReduceMean")
    weights = mean.inputs[0] if mean is not None else None
    shape = shape_of(weights) if weights is not None else None
    if mean is None or shape is None or sizes is None or len(shape) != 4:
        return False
    axes = integers_of(mean.inputs[1]) if len(mean.inputs) > 1 else None
    if axes != (1, 2) or mean.attributes.get_int("keepdims", 1) != 0:
        return False
    size = sizes.base
    tokens = shape[0], shape[3]
    if shape_of(size) != (*tokens, 1) or not sizes.is_whole(tokens):
        return False
    share = _share(received, size)
    if share is None or shape_of(node.outputs[0]) != tokens:
        return False
    new = Replacement(node)
    rare = new.call(
        "fusion_criteria",
        weights,
        size,
        domain=DOMAIN,
        outputs=2,
        info_power=info[1],
        size_power=small[1],
    )
    call = rare.producer()
    assert call is not None
    new.put(rare)
    new.move_readers(share, call.outputs[1])
    return True


def _power(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """Returns t and p of a value (r / max(r)) ^ p with r = 1 / t, over the tokens (B, N) of t."""
    power = made_by(value, "Pow")
    exponent = number_of(power.inputs[1]) if power is not None else None
    part = made_by(power.inputs[0], "Div") if power is not None else None
    rare = made_by(part.inputs[0], "Reciprocal") if part is not None else None
    if power is None or exponent is None or part is None or rare is None:
        return None
    if not _is_largest(part.inputs[1], rare.outputs[0]) or rare.inputs[0] is None:
        return None
    return rare.inputs[0], exponent


def _is_largest(value: ir.Value | None, of: ir.Value | None) -> bool:
    """Tells whether a value is the largest of another along the tokens."""
    largest = made_by(value, "ReduceMax")
    if largest is None or largest.inputs[0] is not of or len(largest.inputs) < 2:
        return False
    kept = largest.attributes.get_int("keepdims", 1) != 0
    return kept and integers_of(largest.inputs[1]) == (1,)


def _share(received: ir.Value, size: ir.Value) -> ir.Value | None:
    """Returns the value received · size / max(size), (B, N, 1)."""
    for wide in (use.node for use in received.uses()):
        if wide.op_type != "Unsqueeze" or integers_of(wide.inputs[1]) not in ((2,), (-1,)):
            continue
        for product in (use.node for use in wide.outputs[0].uses()):
            if product.op_type != "Mul" or size not in product.inputs:
                continue
            for quotient in (use.node for use in product.outputs[0].uses()):
                if quotient.op_type != "Div" or quotient.inputs[0] is not product.outputs[0]:
                    continue
                found = quotient.outputs[0]
                if _is_largest(quotient.inputs[1], size) and not found.is_graph_output():
                    return found
    return None
