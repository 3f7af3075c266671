"""Fuses the criteria of MCTF: how rare each token is, and its share in a merge.

Before → after, P (B, H, Nq, N) the softmax and s (B, N, 1) the sizes::

    received = ReduceMean(P, (1, 2))
    rare = share_of_largest(1 / received) ^ p · share_of_largest(1 / s) ^ q
    share = received · s / max(s)
    →  rare, share = fusion_criteria(P, s; info_power=p, size_power=q)

Source: MCTF (Lee et al. 2024), section 3.
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import made_by, maker_of
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import (
    integers_of,
    number_of,
    shape_of,
    view_of,
)
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason


class FusionCriteria(NodePass):
    """Rewrites the criteria of tokens where both that are computed of them are read."""

    name = "fusion criteria"
    op_types = ("Mul",)
    sorts = True  # a share may come before the term that is given with it now

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches a product of two powers: of what attention gives tokens, and of their sizes."""
        info, small = _power(node.inputs[0]), _power(node.inputs[1])
        if info is None or small is None:
            return None
        received, sizes = info[0], view_of(small[0])
        if node.outputs[0].dtype != ir.DataType.FLOAT:
            return Reason("it is not of float32")
        mean = made_by(received, "ReduceMean")
        if mean is None or mean.inputs[0] is None:
            return Reason(f"its first term comes from {maker_of(received)}, not from a mean")
        shape = shape_of(mean.inputs[0]) or ()
        axes = integers_of(mean.inputs[1]) if len(mean.inputs) > 1 else None
        flat = mean.attributes.get_int("keepdims", 1) == 0
        if len(shape) != 4 or axes != (1, 2) or not flat:
            return Reason(f"its first term is no mean of attention {shape} over heads and queries")
        tokens = shape[0], shape[3]
        if sizes is None or shape_of(sizes.base) != (*tokens, 1) or not sizes.is_whole(tokens):
            return Reason("its second term is of no sizes (B, N, 1) in their order")
        share = _share(received, sizes.base)
        if share is None or shape_of(node.outputs[0]) != tokens:
            return Reason("nothing weighs the tokens by the same attention and sizes")
        return partial(_rewrite, node, mean.inputs[0], sizes.base, share, info[1], small[1])


def _rewrite(
    node: ir.Node,
    weights: ir.Value,
    size: ir.Value,
    share: ir.Value,
    info_power: float,
    size_power: float,
) -> None:
    new = Replacement(node)
    rare = new.call(
        "fusion_criteria",
        weights,
        size,
        domain=DOMAIN,
        outputs=2,
        info_power=info_power,
        size_power=size_power,
    )
    call = rare.producer()
    assert call is not None
    new.put(rare)
    new.move_readers(share, call.outputs[1])


def _power(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """Returns t (B, N) and p of a value (r / max(r)) ^ p with r = 1 / t."""
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
    """Returns whether a value is the largest of another along the tokens."""
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
