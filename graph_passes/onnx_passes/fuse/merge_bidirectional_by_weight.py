"""Fuses the weighted means of merges in both directions.

Before → after, t (B, N, 1) the weights::

    merge_both_ways(x · t) / merge_both_ways(t)      →  merge_both_ways_by_weight(x, t, …)

Source: MCTF (Lee et al. 2024), section 3.
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import comes_from, made_by, maker_of
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.onnx_passes.graph.token_sets import SPLIT
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason


class MergeBidirectionalByWeight(NodePass):
    """Rewrites quotients of merged weighted tokens and merged weights."""

    name = "merge bidirectional by weight"
    comes_before = ("token destinations", "ahead attention")
    op_types = ("Div",)
    sorts = True  # some readers of the weights come before what gives them now

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches the sum of weighted tokens, divided by the sum of the weights."""
        total = made_by(node.inputs[0], "merge_both_ways", DOMAIN)
        count = node.inputs[1]
        if total is None or count is None:
            return None
        weighted = made_by(total.inputs[0], "Mul")
        shape = shape_of(weighted.outputs[0]) if weighted is not None else None
        if weighted is None or shape is None:
            return Reason(f"what it merges comes from {maker_of(total.inputs[0])}, without weights")
        factors = [value for value in weighted.inputs if value is not None]
        for x, weight in (factors, factors[::-1]):
            if (
                shape_of(x) == shape
                and shape_of(weight) == (*shape[:2], 1)
                and _sums(count, weight, total)
            ):
                if count.is_graph_output() or comes_from(x, count):
                    return Reason("the merged weights are an output, or decide what is merged")
                return partial(_rewrite, node, total, x, weight)
        return Reason("it is divided by something else than the sum of the weights")


def _sums(count: ir.Value, weight: ir.Value, total: ir.Node) -> bool:
    """Returns whether a value is the weights, merged as another value was."""
    call = count.producer()
    if call is None or call.domain != DOMAIN:
        return False
    names = {"merge_both_ways": 0, "merge_both_ways_by_weight": 1}
    given = names.get(call.op_type)
    return (
        given is not None
        and count is call.outputs[given]
        and call.inputs[given] is weight
        and call.inputs[given + 1 :] == total.inputs[1:]
        and _attributes(call) == _attributes(total)
    )


def _rewrite(node: ir.Node, total: ir.Node, x: ir.Value, weight: ir.Value) -> None:
    count = node.inputs[1]
    assert count is not None
    new = Replacement(node)
    tokens = new.call(
        "merge_both_ways_by_weight",
        x,
        weight,
        *total.inputs[1:],
        domain=DOMAIN,
        outputs=2,
        **_attributes(total),
    )
    call = tokens.producer()
    assert call is not None
    new.put(tokens)
    sums = call.outputs[1]
    sums.shape, sums.type = count.shape, count.type
    if made_by(count, "merge_both_ways", DOMAIN) is not None:
        new.move_readers(count, sums)


def _attributes(call: ir.Node) -> dict[str, list[int]]:
    return {name: list(call.attributes.get_ints(name)) for name in SPLIT}
