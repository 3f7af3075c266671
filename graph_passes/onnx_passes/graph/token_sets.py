"""Reads the sets that tokens are split into, each of every second token, or third, or so.

And what merging one into the other gives, the tokens in neither set first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.producers import made_by
from tokexport.graph_passes.onnx_passes.graph.strided_views import integers_of, shape_of
from tokexport.graph_passes.ops.onnx_functions import DOMAIN

#: The attributes that say how tokens are split in a merge.
SPLIT: Final = ("protected", "a_start", "b_start", "step")


@dataclass(frozen=True)
class TokenSet:
    """Every ``step``-th row of tokens (B, N, C) from ``start`` on, ``count`` of them."""

    tokens: ir.Value
    start: int
    step: int
    count: int


@dataclass(frozen=True)
class Merged:
    """What is merged, and how."""

    tokens: ir.Value
    protected: int
    a_start: int
    b_start: int
    step: int
    indices: tuple[ir.Value | None, ...]


def token_set(value: ir.Value | None) -> TokenSet | None:
    """Returns a value as a set of the tokens it slices; None where it is not one."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain != "" or node.op_type != "Slice":
        return None
    tokens, sliced = node.inputs[0], shape_of(value)
    shape = shape_of(tokens) if tokens is not None else None
    bounds = [integers_of(bound) for bound in node.inputs[1:]]
    if tokens is None or shape is None or sliced is None or len(bounds) < 3 or None in bounds:
        return None
    if len(bounds) == 3:
        bounds.append((1,))
    starts, axes, steps = bounds[0], bounds[2], bounds[3]
    if starts is None or axes is None or steps is None or len(axes) != 1 or steps[0] < 1:
        return None
    if axes[0] % len(shape) != 1:
        return None
    start = starts[0] + shape[1] if starts[0] < 0 else starts[0]
    return TokenSet(tokens, max(0, start), steps[0], sliced[1])


def two_sets(a: ir.Value | None, b: ir.Value | None) -> tuple[TokenSet, TokenSet] | None:
    """Returns two sets of the same tokens, equally far apart and to the last; None of others."""
    first, second = token_set(a), token_set(b)
    if first is None or second is None or first.tokens is not second.tokens:
        return None
    whole = _to_the_end(first) and _to_the_end(second)
    return (first, second) if whole and first.step == second.step else None


def divided_by_length(value: ir.Value) -> ir.Value | None:
    """Returns m of m / ‖m‖ over the last axis."""
    quotient = made_by(value, "Div")
    length = made_by(quotient.inputs[1], "ReduceL2") if quotient is not None else None
    if quotient is None or length is None or length.inputs[0] is not quotient.inputs[0]:
        return None
    axes = integers_of(length.inputs[1]) if len(length.inputs) > 1 else None
    if axes not in ((-1,), (2,)) or length.attributes.get_int("keepdims", 1) == 0:
        return None
    return quotient.inputs[0]


def merged(value: ir.Value) -> Merged | None:
    """Returns what a value is the merging of, with its protected tokens first."""
    protected, rest = 0, value
    joined = made_by(value, "Concat")
    tokens = None
    if joined is not None:
        if len(joined.inputs) != 2 or joined.attributes.get_int("axis") != 1:
            return None
        first, second = joined.inputs
        stay = token_set(first)
        if stay is None or second is None or (stay.start, stay.step) != (0, 1):
            return None
        protected, rest, tokens = stay.count, second, stay.tokens
    merge = made_by(rest, "merge_tokens_sum", DOMAIN)
    sets = two_sets(merge.inputs[0], merge.inputs[1]) if merge is not None else None
    if merge is None or sets is None or tokens not in (None, sets[0].tokens):
        return None
    a, b = sets
    return Merged(a.tokens, protected, a.start, b.start, a.step, tuple(merge.inputs[2:]))


def _to_the_end(found: TokenSet) -> bool:
    """Returns whether a set goes on to the last token."""
    shape = shape_of(found.tokens)
    return shape is not None and found.count == -(-(shape[1] - found.start) // found.step)
