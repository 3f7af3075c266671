"""Fuses the operators of MCTF up to its match.

Before → after, x (B, N, C) the tokens, t (B, N) a term of each::

    u = x / ‖x‖;  a = u[:, i::s];  b = u[:, j::s]
    scores = (a bᵀ + 1) / 2 · t[:, i::s, None] · t[:, None, j::s]
    bipartite_match(scores)      →  …, scores = scored_match(x, t; a_start=i, b_start=j, step=s)

What else reads the scores reads those of the match, so that it decides by the same numbers. Source:
MCTF (Lee et al. 2024), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import made_by, maker_of, turned
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import number_of, shape_of, view_of
from tokexport.graph_passes.onnx_passes.graph.token_sets import (
    TokenSet,
    divided_by_length,
    two_sets,
)
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason


@dataclass(frozen=True)
class Scored:
    """The parts of scores.

    Attributes:
        tokens: The tokens (B, N, C).
        terms: A term (B, N) of each token.
        a: The set whose tokens are the rows of the scores.
        b: The set whose tokens are the columns.
    """

    tokens: ir.Value
    terms: ir.Value
    a: TokenSet
    b: TokenSet


class ScoredMatch(NodePass):
    """Rewrites matches by the cosine between two sets of tokens and a term of each token."""

    name = "scored match"
    domain = DOMAIN
    op_types = ("bipartite_match",)

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches scores that are a cosine between 0 and 1, times a term of either token."""
        scores = node.inputs[0]
        if scores is None or scores.dtype != ir.DataType.FLOAT:
            return Reason("its scores are not of float32")
        found = _scored(scores)
        return found if isinstance(found, Reason) else partial(_rewrite, node, scores, found)


def _rewrite(node: ir.Node, scores: ir.Value, found: Scored) -> None:
    new = Replacement(node)
    first = new.call(
        "scored_match",
        found.tokens,
        found.terms,
        domain=DOMAIN,
        outputs=4,
        a_start=[found.a.start],
        b_start=[found.b.start],
        step=[found.a.step],
        r=list(node.attributes.get_ints("r")),
    )
    made = first.producer()
    assert made is not None
    new.put(*made.outputs[:3])
    new.move_readers(scores, made.outputs[3], "match_back")


def _scored(scores: ir.Value) -> Scored | Reason:
    """Returns the parts of scores, or why they are not a cosine times two terms."""
    outer = made_by(scores, "Mul")
    inner = made_by(outer.inputs[0], "Mul") if outer is not None else None
    half = made_by(inner.inputs[0], "Div") if inner is not None else None
    raised = made_by(half.inputs[0], "Add") if half is not None else None
    product = made_by(raised.inputs[0], "MatMul") if raised is not None else None
    if outer is None or inner is None:
        return Reason(f"its scores come from {maker_of(scores)}, and have no terms of two tokens")
    if half is None or raised is None or product is None:
        return Reason("its scores are not (a · b + 1) / 2, times two terms")
    if number_of(half.inputs[1]) != 2 or number_of(raised.inputs[1]) != 1:
        return Reason("its scores are not (a · b + 1) / 2, times two terms")
    sets = two_sets(product.inputs[0], turned(product.inputs[1], 0, 2, 1))
    if sets is None:
        return Reason("its scores are not between every so many of the same tokens")
    tokens = divided_by_length(sets[0].tokens)
    if tokens is None:
        return Reason(f"its tokens come from {maker_of(sets[0].tokens)}, not divided by length")
    terms = _term(inner.inputs[1], sets[0], 1)
    if terms is None or terms is not _term(outer.inputs[1], sets[1], 2):
        return Reason("its terms are not those of the same tokens")
    images = shape_of(terms) or ()
    if shape_of(scores) != (*images[:1], sets[0].count, sets[1].count):
        return Reason(f"its scores {shape_of(scores)} are not of each pair of tokens")
    return Scored(tokens, terms, *sets)


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
