"""Joins the match of MCTF that goes back: that of the columns of scores to the rows that were kept.

Before → after, scores (B, Na, Nb), kept (B, K)::

    bipartite_match_by_score(gather_tokens(scores, kept)ᵀ)      →  match_back(scores, kept)

Source: MCTF (Lee et al. 2024), section 3, "bidirectional".
"""

from __future__ import annotations

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.neighbours import made_by, turned
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.ops.onnx_functions import DOMAIN


class MatchBack(ir.passes.InPlacePass):
    """Rewrites matches by the score of some rows of scores, turned."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        changed = False
        for node in list(model.graph):
            if node.domain == DOMAIN and node.op_type == "bipartite_match_by_score":
                changed |= _rewrite(node)
        return ir.passes.PassResult(model, modified=changed)


def _rewrite(node: ir.Node) -> bool:
    left = made_by(turned(node.inputs[0], 0, 2, 1), "gather_tokens", DOMAIN)
    scores = left.inputs[0] if left is not None else None
    if left is None or scores is None or scores.dtype != ir.DataType.FLOAT:
        return False
    new = Replacement(node)
    first = new.call(
        "match_back",
        scores,
        left.inputs[1],
        domain=DOMAIN,
        outputs=3,
        r=list(node.attributes.get_ints("r")),
    )
    made = first.producer()
    assert made is not None
    new.put(*made.outputs)
    return True
