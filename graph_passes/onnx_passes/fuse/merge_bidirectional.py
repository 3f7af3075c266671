"""Fuses merges of tokens in both directions, forth and then back.

Before → after, the first P tokens protected, K left of a behind the first merge and L of b behind
the second::

    z = [v[:, :P], merge_tokens(v[:, i::s], v[:, j::s], …, sum)]
    w = merge_tokens(z[:, P + K:], z[:, P:P + K], …, sum)
    [z[:, :P], w[:, L:], w[:, :L]]      →  merge_both_ways(v, …; a_start=i, b_start=j, step=s)

Source: MCTF (Lee et al. 2024), section 3.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import made_by, maker_of
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
from tokexport.graph_passes.pass_report import Reason


class MergeBidirectional(NodePass):
    """Rewrites merges that go forth and back."""

    name = "merge bidirectional"
    comes_before = ("merge bidirectional by weight", "token destinations")
    op_types = ("Concat",)

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches the parts of tokens that were merged one way, and those left the other way."""
        if node.attributes.get_int("axis") != 1 or len(node.inputs) not in (2, 3):
            return None
        *protected, of_a, of_b = (token_set(value) for value in node.inputs)
        if of_a is None or of_b is None or None in protected:
            return None
        back = made_by(of_b.tokens, "merge_tokens_sum", DOMAIN)
        if back is None or of_a.tokens is not of_b.tokens:
            return None
        if node.outputs[0].dtype != ir.DataType.FLOAT:
            return Reason("it is not of float32")
        if not _are_parts(of_b, of_a):
            return Reason("it does not join all that was merged back")
        found = _forth(back, of_b, protected)
        return found if isinstance(found, Reason) else partial(_rewrite, node, found)


def _forth(back: ir.Node, of_b: TokenSet, protected: list[TokenSet | None]) -> Merged | Reason:
    """Returns the merge in both directions that a merge back ends, or why it is none."""
    sources, into = token_set(back.inputs[0]), token_set(back.inputs[1])
    if sources is None or into is None or sources.tokens is not into.tokens:
        return Reason("what it merges back are not parts of the same tokens")
    parts = [*protected, into, sources]
    if any(part is None or part.tokens is not into.tokens for part in parts):
        return Reason("its protected tokens are those of something else")
    found = merged(into.tokens)
    if found is None or found.indices[0] is None:
        return Reason(f"the tokens come from {maker_of(into.tokens)}, and were not merged forth")
    left = shape_of(found.indices[0])
    kept_back = shape_of(back.inputs[2]) if back.inputs[2] is not None else None
    if not _are_parts(*parts) or left is None or into.count != left[1]:
        return Reason("what it merges back is not all that was merged forth")
    if into.start != found.protected or len(protected) != (into.start > 0):
        return Reason("other tokens are protected in one direction than in the other")
    if kept_back is None or of_b.count != kept_back[1]:
        return Reason("it does not join the tokens that are kept in the merge back")
    both = replace(found, indices=(*found.indices, *back.inputs[2:]))
    if not _covers(both):
        return Reason("a token is in neither set, or in both")
    if not (_is_match(*both.indices[:3]) and _is_match(*both.indices[3:])):
        return Reason("its indices are not those of two matches")
    return both


def _rewrite(node: ir.Node, both: Merged) -> None:
    new = Replacement(node)
    attributes = {name: [getattr(both, name)] for name in SPLIT}
    new.put(
        new.call(
            "merge_both_ways", both.tokens, *both.indices, domain=DOMAIN, outputs=1, **attributes
        )
    )


def _are_parts(*sets: TokenSet | None) -> bool:
    """Returns whether sets are one token after the other, from the first to the last."""
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
    """Returns whether each token is protected or in one of the sets."""
    shape = shape_of(found.tokens)
    if shape is None:
        return False
    everyone = range(shape[1])
    sets = (everyone[start :: found.step] for start in (found.a_start, found.b_start))
    return sorted([*everyone[: found.protected], *(n for one in sets for n in one)]) == [*everyone]


def _is_match(*indices: ir.Value | None) -> bool:
    """Returns whether indices are kept, src and dst of one match, or inputs of the graph.

    Those of a match name each row once. A replay graph takes them as inputs.
    """
    found = [value for value in indices if value is not None]
    makers = {value.producer() for value in found}
    (maker,) = makers if len(makers) == 1 else (None,)
    if maker is None:
        return len(found) == 3 and makers == {None} and all(v.is_graph_input() for v in found)
    matches = maker.domain == DOMAIN and "match" in maker.op_type
    return matches and tuple(maker.outputs[:3]) == tuple(found)
