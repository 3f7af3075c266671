"""Gives rules for products of matrices, einsums and attention on padded rows."""

from __future__ import annotations

from typing import Final

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import argument, dtype_of, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.pad.op_rules import Rule, aligned
from tokexport.graph_passes.torch_passes.pad.padded_rows import Padded, refused


def matmul(padded: Padded, node: Node) -> None:
    """A product of matrices; padding rows that it sums over count as 0."""
    a, b = padded.new(node.args)
    ranks = len(shape_of(a)), len(shape_of(b))
    if min(ranks) < 2:
        raise refused(node, "one of its factors is a vector")
    one, other = padded.valid(a).get(ranks[0] - 1), padded.valid(b).get(ranks[1] - 2)
    if (one is None) is not (other is None):
        raise refused(node, "it sums over rows that were chosen differently")
    if one is not None and other is not None:
        both = padded.agree(node, one, other)
        a, b = padded.narrowed(a, ranks[0] - 1, both), padded.narrowed(b, ranks[1] - 2, both)
    rank = max(ranks)
    (a, b), found = aligned(padded, node, (a, b), rank, inner=2)
    for part, own, axis, place in ((a, ranks[0], -2, rank - 2), (b, ranks[1], -1, rank - 1)):
        valid = padded.valid(part).get(own + axis)
        if valid is not None:
            found[place] = valid
    a, b = padded.filled(a, ranks[0] - 1, 0.0), padded.filled(b, ranks[1] - 2, 0.0)
    padded.set(node, padded.edit.call(node.target, a, b), found)


def einsum(padded: Padded, node: Node) -> None:
    """A sum of products; padding rows of a letter that is summed over count as 0."""
    equation = argument(node, "equation").replace(" ", "")
    parts: list[Node] = padded.new(argument(node, "tensors"))
    terms, arrow, result = equation.partition("->")
    letters = terms.split(",")
    if not arrow or "." in equation or any(len(set(term)) < len(term) for term in letters):
        raise refused(node, "its equation is implicit, has dots or takes a diagonal")
    parts, found = padded.meet(node, parts, lambda at, axis: letters[at][axis])
    for term, part in zip(letters, parts, strict=True):
        if any(letter in found and a not in padded.valid(part) for a, letter in enumerate(term)):
            raise refused(node, "it combines padded rows with rows of a fixed number")
    filled = []
    for term, part in zip(letters, parts, strict=True):
        for axis, letter in enumerate(term):
            if letter not in result:
                part = padded.filled(part, axis, 0.0)
        filled.append(part)
    after = {a: found[letter] for a, letter in enumerate(result) if letter in found}
    padded.set(node, padded.edit.call(node.target, equation, filled), after)


def attention(padded: Padded, node: Node) -> None:
    """Fused attention; padding keys get the bias -inf, padding values count as 0."""
    q, k, v = (padded.new(argument(node, name)) for name in ("query", "key", "value"))
    rank = len(shape_of(q))
    (k, v), rows = padded.meet(node, (k, v), lambda _, axis: axis)
    valid = rows.get(rank - 2)
    if padded.valid(k) != padded.valid(v) or argument(node, "is_causal"):
        raise refused(node, "its keys and values are padded differently, or it is causal")
    if any(axis != rank - 2 for part in (q, k, v) for axis in padded.valid(part)):
        raise refused(node, "it has padded rows on another axis than the tokens")
    given = padded.new(argument(node, "attn_mask"))
    edit = padded.edit
    if isinstance(given, Node):
        wanted = {
            len(shape_of(given)) - 1: valid,
            len(shape_of(given)) - 2: padded.valid(q).get(rank - 2),
        }
        if any(wanted.get(axis) is not one for axis, one in padded.valid(given).items()):
            raise refused(node, "its mask is padded differently")
    if valid is not None:
        bias = padded.bias(valid, rank, rank - 1, dtype_of(q))
        if isinstance(given, Node) and dtype_of(given) == torch.bool:
            zero = padded.constant((), 0.0, dtype_of(q))
            low = padded.constant((), -torch.inf, dtype_of(q))
            given = edit.call(aten.where.self, given, zero, low)
        given = bias if given is None else edit.call(aten.add.Tensor, given, bias)
        v = padded.filled(v, rank - 2, 0.0)
    kwargs = {name: argument(node, name) for name in ("scale", "enable_gqa")}
    new = edit.call(node.target, q, k, v, given, 0.0, False, **kwargs)
    padded.set(node, new, {a: one for a, one in padded.valid(q).items() if a == rank - 2})


PRODUCT_RULES: Final[dict[object, Rule]] = {
    aten.matmul.default: matmul,
    aten.bmm.default: matmul,
    aten.mm.default: matmul,
    aten.einsum.default: einsum,
    aten.scaled_dot_product_attention.default: attention,
}
