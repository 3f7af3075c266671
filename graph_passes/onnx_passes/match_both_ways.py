"""Joins what MCTF computes up to its two matches.

Before → after, x (B, N, C) the tokens, t (B, N) a term of each::

    u = x / ‖x‖;  a = u[:, i::s];  b = u[:, j::s]
    scores = (a bᵀ + 1) / 2 · t[:, i::s, None] · t[:, None, j::s]
    kept, … = bipartite_match(scores)
    bipartite_match_by_score(gather_tokens(scores, kept)ᵀ)
    →  match_both_ways(x, t; a_start=i, b_start=j, step=s)

Source: MCTF (Lee et al. 2024), section 3.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.onnx_functions import DOMAIN
from tokexport.graph_passes.onnx_passes.neighbours import made_by
from tokexport.graph_passes.onnx_passes.replacement import Replacement
from tokexport.graph_passes.onnx_passes.strided_views import shape_of, view_of
from tokexport.graph_passes.onnx_passes.token_sets import TokenSet, divided_by_length, two_sets


class MatchBothWays(ir.passes.InPlacePass):
    """Rewrites pairs of matches of which the second goes back."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        changed = False
        for node in list(model.graph):
            if node.domain == DOMAIN and node.op_type == "bipartite_match_by_score":
                changed |= _rewrite(node)
        return ir.passes.PassResult(model, modified=changed)


def _rewrite(back: ir.Node) -> bool:
    forth = _forth(back)
    scores = forth.inputs[0] if forth is not None else None
    if forth is None or scores is None or scores.dtype != ir.DataType.FLOAT:
        return False
    found = _scored(scores)
    if found is None:
        return False
    tokens, rare, a, b = found
    new = Replacement(forth)
    first = new.call(
        "match_both_ways",
        tokens,
        rare,
        domain=DOMAIN,
        outputs=6,
        a_start=[a.start],
        b_start=[b.start],
        step=[a.step],
        r=list(forth.attributes.get_ints("r")),
        back=list(back.attributes.get_ints("r")),
    )
    call = first.producer()
    assert call is not None
    for old, value in zip((*forth.outputs, *back.outputs), call.outputs, strict=True):
        value.shape, value.type = old.shape, old.type
    new.put(*call.outputs[:3])
    for old, value in zip(back.outputs, call.outputs[3:], strict=True):
        for use in list(old.uses()):
            use.node.replace_input_with(use.idx, value)
    return True


def _forth(back: ir.Node) -> ir.Node | None:
    """Returns the match whose scores a match reads turned, those of the kept rows alone."""
    turned = made_by(back.inputs[0], "Transpose")
    if turned is None or tuple(turned.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    left = made_by(turned.inputs[0], "gather_tokens", DOMAIN)
    forth = made_by(left.inputs[1], "bipartite_match", DOMAIN) if left is not None else None
    if left is None or forth is None or forth.outputs[0] is not left.inputs[1]:
        return None
    results = (*forth.outputs, *back.outputs)
    if forth.inputs[0] is not left.inputs[0] or any(one.is_graph_output() for one in results):
        return None
    return forth


def _scored(scores: ir.Value) -> tuple[ir.Value, ir.Value, TokenSet, TokenSet] | None:
    """Returns the tokens and the terms that scores are made of, and the two sets."""
    outer = made_by(scores, "Mul")
    inner = made_by(outer.inputs[0], "Mul") if outer is not None else None
    half = made_by(inner.inputs[0], "Div") if inner is not None else None
    raised = made_by(half.inputs[0], "Add") if half is not None else None
    product = made_by(raised.inputs[0], "MatMul") if raised is not None else None
    turned = made_by(product.inputs[1], "Transpose") if product is not None else None
    if outer is None or inner is None or half is None or raised is None:
        return None
    if product is None or turned is None:
        return None
    if not _is(half.inputs[1], 2) or not _is(raised.inputs[1], 1):
        return None
    if tuple(turned.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    sets = two_sets(product.inputs[0], turned.inputs[0])
    tokens = divided_by_length(sets[0].tokens) if sets is not None else None
    if sets is None or tokens is None:
        return None
    rare = _term(inner.inputs[1], sets[0], 1)
    if rare is None or rare is not _term(outer.inputs[1], sets[1], 2):
        return None
    return tokens, rare, *sets


def _is(value: ir.Value | None, number: int) -> bool:
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    return constant is not None and constant.size > 0 and bool(np.all(constant.numpy() == number))


def _term(value: ir.Value | None, of: TokenSet, axis: int) -> ir.Value | None:
    """Returns the terms (B, N) of which a value holds those of a set along an axis."""
    view = view_of(value) if value is not None else None
    base = shape_of(view.base) if view is not None else None
    tokens = shape_of(of.tokens)
    if view is None or tokens is None or base != tokens[:2]:
        return None
    wanted = [tokens[0], 1, 1]
    wanted[axis] = of.count
    strides = (tokens[1], of.step, of.step)
    fits = view.shape == tuple(wanted) and all(
        size == 1 or stride == right
        for size, stride, right in zip(view.shape, view.strides, strides, strict=True)
    )
    return view.base if fits and view.offset == of.start else None
