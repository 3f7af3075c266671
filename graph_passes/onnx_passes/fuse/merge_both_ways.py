"""Joins what merges tokens forth and then back, and the mean of them by weight.

Before → after, the first P tokens protected, K left of a behind the first merge and L of b behind
the second::

    z = [v[:, :P], merge_tokens(v[:, i::s], v[:, j::s], …, sum)]
    w = merge_tokens(z[:, P + K:], z[:, P:P + K], …, sum)
    [z[:, :P], w[:, L:], w[:, :L]]      →  merge_both_ways(v, …; a_start=i, b_start=j, step=s)

    merge_both_ways(x · t) / merge_both_ways(t)      →  merge_both_ways_by_weight(x, t, …)

Source: MCTF (Lee et al. 2024), section 3.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.neighbours import comes_from, made_by
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.onnx_passes.graph.token_sets import (
    SPLIT,
    Merged,
    TokenSet,
    merged,
    token_set,
)
from tokexport.graph_passes.ops.onnx_functions import DOMAIN


class MergeBothWays(ir.passes.InPlacePass):
    """Rewrites merges that go forth and back, and quotients of them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        nodes = [node for node in model.graph if node.domain == ""]
        changed = False
        for node in nodes:
            changed |= node.op_type == "Concat" and _merge(node)
        for node in nodes:
            changed |= node.op_type == "Div" and _mean(node)
        if changed:
            model.graph.sort()  # some readers of the weights came before what gives them now
        return ir.passes.PassResult(model, modified=changed)


def _merge(node: ir.Node) -> bool:
    if node.outputs[0].dtype != ir.DataType.FLOAT or node.attributes.get_int("axis") != 1:
        return False
    if len(node.inputs) not in (2, 3):
        return False
    *stay, of_a, of_b = (token_set(value) for value in node.inputs)
    if of_a is None or of_b is None or None in stay:
        return False
    back = made_by(of_b.tokens, "merge_tokens_sum", DOMAIN)
    if back is None or of_a.tokens is not of_b.tokens or not _are_parts(of_b, of_a):
        return False
    sources, into = token_set(back.inputs[0]), token_set(back.inputs[1])
    if sources is None or into is None or sources.tokens is not into.tokens:
        return False
    parts = [*stay, into, sources]
    if any(part is None or part.tokens is not into.tokens for part in parts):
        return False
    found = merged(into.tokens)
    if found is None or found.indices[0] is None or not _are_parts(*parts):
        return False
    left = shape_of(found.indices[0])
    kept_back = shape_of(back.inputs[2]) if back.inputs[2] is not None else None
    if left is None or kept_back is None or of_b.count != kept_back[1]:
        return False
    if into.start != found.protected or into.count != left[1] or len(stay) != (into.start > 0):
        return False
    both = replace(found, indices=(*found.indices, *back.inputs[2:]))
    if not _covers(both) or not (_is_match(*both.indices[:3]) and _is_match(*both.indices[3:])):
        return False
    new = Replacement(node)
    attributes = {name: [getattr(both, name)] for name in SPLIT}
    new.put(
        new.call(
            "merge_both_ways", both.tokens, *both.indices, domain=DOMAIN, outputs=1, **attributes
        )
    )
    return True


def _are_parts(*sets: TokenSet | None) -> bool:
    """Tells whether sets are one token behind the other, from the first to the last."""
    found = [one for one in sets if one is not None]
    shape = shape_of(found[0].tokens)
    return (
        len(found) == len(sets)
        and shape is not None
        and found[0].start == 0
        and all(one.step == 1 for one in found)
        and all(one.start + one.count == after.start for one, after in pairwise(found))
        and found[-1].start + found[-1].count == shape[1]
    )


def _covers(found: Merged) -> bool:
    """Tells whether each token is protected or in one of the sets."""
    shape = shape_of(found.tokens)
    if shape is None:
        return False
    everyone = range(shape[1])
    sets = (everyone[start :: found.step] for start in (found.a_start, found.b_start))
    return sorted([*everyone[: found.protected], *(n for one in sets for n in one)]) == [*everyone]


def _is_match(*indices: ir.Value | None) -> bool:
    """Tells whether indices are kept, src and dst of one match, or given as such to the graph.

    Those of a match name each row once. A graph that is told how to decide is given them.
    """
    found = [value for value in indices if value is not None]
    makers = {value.producer() for value in found}
    (maker,) = makers if len(makers) == 1 else (None,)
    if maker is None:
        return len(found) == 3 and makers == {None} and all(v.is_graph_input() for v in found)
    matches = maker.domain == DOMAIN and "match" in maker.op_type
    return matches and tuple(maker.outputs[:3]) == tuple(found)


def _mean(node: ir.Node) -> bool:
    total = made_by(node.inputs[0], "merge_both_ways", DOMAIN)
    weighted = made_by(total.inputs[0], "Mul") if total is not None else None
    count = node.inputs[1]
    if total is None or weighted is None or count is None or count.is_graph_output():
        return False
    shape = shape_of(weighted.outputs[0])
    factors = [value for value in weighted.inputs if value is not None]
    for x, weight in (factors, factors[::-1]):
        if (
            shape is not None
            and shape_of(x) == shape
            and shape_of(weight) == (*shape[:2], 1)
            and _sums(count, weight, total)
            and not comes_from(x, count)
        ):
            _put(node, total, x, weight)
            return True
    return False


def _sums(count: ir.Value, weight: ir.Value, total: ir.Node) -> bool:
    """Tells whether a value is the weights, merged as something else was."""
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


def _put(node: ir.Node, total: ir.Node, x: ir.Value, weight: ir.Value) -> None:
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
