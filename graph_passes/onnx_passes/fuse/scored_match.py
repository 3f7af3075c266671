"""Joins what MCTF computes up to its match.

Before → after, x (B, N, C) the tokens, t (B, N) a term of each::

    u = x / ‖x‖;  a = u[:, i::s];  b = u[:, j::s]
    scores = (a bᵀ + 1) / 2 · t[:, i::s, None] · t[:, None, j::s]
    bipartite_match(scores)      →  …, scores = scored_match(x, t; a_start=i, b_start=j, step=s)

What else reads the scores reads those of the match, so that it decides by the same numbers. Source:
MCTF (Lee et al. 2024), section 3.
"""

from __future__ import annotations

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.neighbours import made_by, turned
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import number_of, shape_of, view_of
from tokexport.graph_passes.onnx_passes.graph.token_sets import (
    TokenSet,
    divided_by_length,
    two_sets,
)
from tokexport.graph_passes.ops.onnx_functions import DOMAIN


class ScoredMatch(ir.passes.InPlacePass):
    """Rewrites matches by the cosine between two sets of tokens and a term of each token."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        changed = False
        for node in list(model.graph):
            if node.domain == DOMAIN and node.op_type == "bipartite_match":
                changed |= _rewrite(node)
        return ir.passes.PassResult(model, modified=changed)


def _rewrite(node: ir.Node) -> bool:
    scores = node.inputs[0]
    if scores is None or scores.dtype != ir.DataType.FLOAT:
        return False
    found = _scored(scores)
    if found is None:
        return False
    tokens, rare, a, b = found
    new = Replacement(node)
    first = new.call(
        "scored_match",
        tokens,
        rare,
        domain=DOMAIN,
        outputs=4,
        a_start=[a.start],
        b_start=[b.start],
        step=[a.step],
        r=list(node.attributes.get_ints("r")),
    )
    made = first.producer()
    assert made is not None
    new.put(*made.outputs[:3])
    new.move_readers(scores, made.outputs[3], "match_back")
    return True


def _scored(scores: ir.Value) -> tuple[ir.Value, ir.Value, TokenSet, TokenSet] | None:
    """Returns the tokens and the terms that scores are made of, and the two sets."""
    outer = made_by(scores, "Mul")
    inner = made_by(outer.inputs[0], "Mul") if outer is not None else None
    half = made_by(inner.inputs[0], "Div") if inner is not None else None
    raised = made_by(half.inputs[0], "Add") if half is not None else None
    product = made_by(raised.inputs[0], "MatMul") if raised is not None else None
    if outer is None or inner is None or half is None or raised is None:
        return None
    if product is None:
        return None
    if number_of(half.inputs[1]) != 2 or number_of(raised.inputs[1]) != 1:
        return None
    sets = two_sets(product.inputs[0], turned(product.inputs[1], 0, 2, 1))
    tokens = divided_by_length(sets[0].tokens) if sets is not None else None
    if sets is None or tokens is None:
        return None
    rare = _term(inner.inputs[1], sets[0], 1)
    if rare is None or rare is not _term(outer.inputs[1], sets[1], 2):
        return None
    images = shape_of(rare) or ()
    if shape_of(scores) != (*images[:1], sets[0].count, sets[1].count):
        return None
    return tokens, rare, *sets


def _term(value: ir.Value | None, of: TokenSet, axis: int) -> ir.Value | None:
    """Returns the terms (B, N) of which a value holds those of a set along an axis."""
    view = view_of(value) if value is not None else None
    base = shape_of(view.base) if view is not None else None
    tokens = shape_of(of.tokens)
    if view is None or tokens is None or base != tokens[:2]:
        return None
    wanted = [tokens[0], 1, 1]
    wanted[axis] = of.count
    fits = view.shape == tuple(wanted) and view.steps_by((tokens[1], of.step, of.step))
    return view.base if fits and view.offset == of.start else None
