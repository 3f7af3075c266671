"""Reads the sets that tokens are split into, each of every second token, or third, or so."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.strided_views import integers_of, shape_of


@dataclass(frozen=True)
class TokenSet:
    """Every ``step``-th row of tokens (B, N, C) from ``start`` on, ``count`` of them."""

    tokens: ir.Value
    start: int
    step: int
    count: int


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


def _to_the_end(found: TokenSet) -> bool:
    """Tells whether a set goes on to the last token."""
    shape = shape_of(found.tokens)
    return shape is not None and found.count == -(-(shape[1] - found.start) // found.step)
