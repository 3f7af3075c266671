"""Fuses the second match of MCTF: that of the columns of scores with the kept rows.

Before → after, scores (B, Na, Nb), kept (B, K)::

    bipartite_match_by_score(gather_tokens(scores, kept)ᵀ)      →  match_back(scores, kept)

Source: MCTF (Lee et al. 2024), section 3, "bidirectional".
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import made_by, maker_of, turned
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason


class MatchBack(NodePass):
    """Rewrites matches by the score of some rows of scores, turned."""

    name = "match back"
    comes_before = ("scored match",)
    domain = DOMAIN
    op_types = ("bipartite_match_by_score",)

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches scores (B, Nb, K) that are some rows of others, turned."""
        rows = turned(node.inputs[0], 0, 2, 1)
        left = made_by(rows, "gather_tokens", DOMAIN)
        if left is None or left.inputs[0] is None:
            return Reason(f"its scores come from {maker_of(rows)}, not from rows that were kept")
        if left.inputs[0].dtype != ir.DataType.FLOAT:
            return Reason("its scores are not of float32")
        return partial(_rewrite, node, left)


def _rewrite(node: ir.Node, left: ir.Node) -> None:
    new = Replacement(node)
    first = new.call(
        "match_back",
        *left.inputs,
        domain=DOMAIN,
        outputs=3,
        r=list(node.attributes.get_ints("r")),
    )
    made = first.producer()
    assert made is not None
    new.put(*made.outputs)
