"""Finds the axes along which a value varies, and reads it without broadcast axes.

Published code moves rows with an index spread over the channels::

    index = rows[:, :, None].expand(B, K, C)      # varies along axes 0 and 1 only
    x.gather(1, index)

``varying_axes(index)`` is {0, 1} and ``collapse(edit, index, (0, 1))`` finds ``rows`` again,
whatever chain of unsqueeze, expand, repeat, view or slice lies between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    is_call,
    is_tensor,
    normal_axis,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten

_ELEMENTWISE = frozenset(
    {
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.log.default,
        aten.neg.default,
        aten.remainder.Scalar,
        aten.where.self,
        aten._to_copy.default,
        aten.to.dtype,
        aten.clone.default,
    }
)
_FILLS = (
    aten.full.default,
    aten.full_like.default,
    aten.zeros.default,
    aten.zeros_like.default,
    aten.ones.default,
    aten.ones_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
)
_REGROUPS = (
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
)
_MOVES = (
    aten.expand.default,
    aten.repeat.default,
    aten.unsqueeze.default,
    aten.permute.default,
    aten.transpose.int,
    aten.select.int,
    *_REGROUPS,
)


def varying_axes(node: Node) -> frozenset[int]:
    """Returns the axes along which the values may differ; of size-1 axes none does.

    Each value before it is visited once, also where many paths lead to it.
    """
    known: dict[Node, frozenset[int]] = {}
    ahead = [node]
    while ahead:
        one = ahead.pop()
        unknown = [part for part in _spread_from(one) if part not in known]
        if unknown:
            ahead += [one, *unknown]
        else:
            known[one] = _varying_axes(one, known)
    return known[node]


def _spread_from(node: Node) -> list[Node]:
    """Returns the values whose axes say where those of a call may differ."""
    if is_call(node, *_FILLS):
        return []
    if kept_axes(node) is not None or is_call(node, aten.slice.Tensor):
        return [operand(node)]
    if is_call(node, *_ELEMENTWISE):
        return [part for part in node.args if isinstance(part, Node) and is_tensor(part)]
    if is_call(node, aten.gather.default):
        return [operand(node), operand(node, "index")]
    return []


def _varying_axes(node: Node, known: Mapping[Node, frozenset[int]]) -> frozenset[int]:
    if is_call(node, *_FILLS):
        return frozenset()
    shape = shape_of(node)
    wide = frozenset(a for a, size in enumerate(shape) if size > 1)
    sources = _spread_from(node)
    kept = kept_axes(node)
    if kept is not None:
        return wide & {a for a, origin in kept.items() if origin in known[sources[0]]}
    if is_call(node, *_ELEMENTWISE):
        return wide & {
            a + len(shape) - len(shape_of(part)) for part in sources for a in known[part]
        }
    if is_call(node, aten.slice.Tensor):
        return wide & known[sources[0]]
    if is_call(node, aten.gather.default):
        return wide & (known[sources[0]] | known[sources[1]] | {axis(node)})
    return wide


def kept_axes(node: Node) -> dict[int, int] | None:
    """Maps each output axis to the input axis it repeats, for calls that only move axes.

    Axes that are not in the result hold the same values at every position.
    """
    if not is_call(node, *_MOVES):
        return None
    source = operand(node)
    before, after = shape_of(source), shape_of(node)
    if is_call(node, aten.expand.default, aten.repeat.default):
        offset = len(after) - len(before)
        grown = any(size not in (1, after[a + offset]) for a, size in enumerate(before))
        return None if grown else {a + offset: a for a in range(len(before))}
    if is_call(node, aten.unsqueeze.default):
        new = normal_axis(argument(node, "dim"), len(after))
        return {a: a - (a > new) for a in range(len(after)) if a != new}
    if is_call(node, aten.permute.default):
        order = argument(node, "dims")
        return {a: normal_axis(origin, len(before)) for a, origin in enumerate(order)}
    if is_call(node, aten.transpose.int):
        one, other = axis(node, "dim0"), axis(node, "dim1")
        return {a: {one: other, other: one}.get(a, a) for a in range(len(after))}
    if is_call(node, *_REGROUPS):
        return _same_but_for_ones(before, after)
    gone = axis(node)  # of a select
    return {a: a + (a >= gone) for a in range(len(after))} if before[gone] == 1 else None


def _same_but_for_ones(before: Sequence[int], after: Sequence[int]) -> dict[int, int] | None:
    """Pairs the axes of two shapes that differ only by axes of size 1."""
    pairs: dict[int, int] = {}
    one, other = 0, 0
    while one < len(before) or other < len(after):
        if one < len(before) and other < len(after) and before[one] == after[other]:
            pairs[other] = one
            one, other = one + 1, other + 1
        elif other < len(after) and after[other] == 1:
            other += 1
        elif one < len(before) and before[one] == 1:
            one += 1
        else:
            return None
    return pairs


def collapse(edit: Editor, node: Node, keep: Sequence[int]) -> Node:
    """Returns the value over the axes ``keep``, in that order; the others must not vary.

    Where the chain that spread the value can be walked back, its beginning is returned and nothing
    is inserted; else position 0 of every other axis is selected.
    """
    while [*keep] != [*range(len(shape_of(node)))]:
        origins = _origins(node, keep)
        if origins is None:
            break
        node, keep = operand(node), origins
    else:
        return node
    result = node
    for a in sorted(set(range(len(shape_of(node)))) - set(keep), reverse=True):
        result = edit.call(aten.select.int, result, a, 0)
    return edit.permute(result, [sorted(keep).index(a) for a in keep])


def _origins(node: Node, keep: Sequence[int]) -> list[int] | None:
    """Returns the axes of the call's input that alone make up the axes ``keep``."""
    if is_call(node, aten.slice.Tensor):  # along an axis that does not vary, any part is the whole
        kept: dict[int, int] | None = {a: a for a in keep if a != axis(node)}
    else:
        kept = kept_axes(node)
    if kept is None or not all(a in kept for a in keep):
        return None
    source = operand(node)
    origins = [kept[a] for a in keep]
    sizes = [shape_of(source)[origin] for origin in origins]
    alone = varying_axes(source) <= set(origins)
    return origins if alone and sizes == [shape_of(node)[a] for a in keep] else None
