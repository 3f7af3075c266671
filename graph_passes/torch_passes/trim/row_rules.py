"""Gives rules that compute some rows of a call from some rows of its operands.

A rule takes a call, an axis of its result and a span of that axis, inserts the call on as much of
the operands as the span needs, and returns the new value; it returns None where the span needs all
of them. Random operators have no rule, and neither have decisions (``decisions``): eager's
decisions are found by name, and whole.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Final

import torch
from torch._ops import OpOverload
from torch.fx import Node

from tokexport.graph_passes.ops.ops import NAMESPACE
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    is_tensor,
    normal_axis,
    operand,
    operands,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.decision_kinds import decides
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.match.protected_rows import protected_rows

Rule = Callable[[Editor, Node, int, int, int], Node | None]


def rule_of(node: Node) -> Rule | None:
    """Returns the rule of a call; None without a rule."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload) or decides(node):
        return None
    tags = node.target.tags
    if torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags:
        return _pointwise
    if node.target.namespace == NAMESPACE:
        return _DOMAIN.get(node.target._schema.name.partition("::")[2])
    return _RULES.get(node.target)


def bounds(node: Node, size: int) -> tuple[int, int] | None:
    """Returns the first row of a slice and the row behind its last; None for any but a plain one.

    Args:
        node: A call of ``aten.slice.Tensor``.
        size: The size of the axis that it takes a part of.
    """
    given = (argument(node, "start"), argument(node, "end"))
    if argument(node, "step") != 1 or not all(one is None or isinstance(one, int) for one in given):
        return None
    start, stop, _ = slice(*given).indices(size)
    return start, max(start, stop)


def _again(edit: Editor, node: Node, **new: Node) -> Node:
    """Inserts a call once more, with other operands under the schema's names."""
    names = [formal.name for formal in node.target._schema.arguments]  # type: ignore[union-attr]
    args = [new.get(name, one) for name, one in zip(names, node.args, strict=False)]
    kwargs = {name: new.get(name, one) for name, one in node.kwargs.items()}
    return edit.call(node.target, *args, **kwargs)


def _pointwise(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node:
    rank, new = len(shape_of(node)), {}
    for formal in node.target._schema.arguments:  # type: ignore[union-attr]
        one = argument(node, formal.name)
        if is_tensor(one):
            own = along - (rank - len(shape_of(one)))
            if own >= 0 and shape_of(one)[own] > 1:
                new[formal.name] = edit.cut(one, own, start, stop)
    return _again(edit, node, **new)


def _normalised(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    x = operand(node, "input")
    if along >= len(shape_of(x)) - len(argument(node, "normalized_shape")):
        return None
    return _again(edit, node, input=edit.cut(x, along, start, stop))


def _linear(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    if along == len(shape_of(node)) - 1:
        return None
    return _again(edit, node, input=edit.cut(operand(node, "input"), along, start, stop))


def _matmul(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    x, rank = operand(node), len(shape_of(node))
    if along != rank - 2 or len(shape_of(x)) != rank:
        return None
    return _again(edit, node, self=edit.cut(x, along, start, stop))


def _softmax(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    if along == axis(node):
        return None
    return _again(edit, node, self=edit.cut(operand(node), along, start, stop))


def _reduced(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    x, dims = operand(node), argument(node, "dim")
    if not dims:
        return None
    rank = len(shape_of(x))
    gone = {normal_axis(one, rank) for one in dims}
    if argument(node, "keepdim"):
        own = along
    else:
        own = [one for one in range(rank) if one not in gone][along]
    return None if own in gone else _again(edit, node, self=edit.cut(x, own, start, stop))


def _fused_attention(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    q, mask, rank = operand(node, "query"), argument(node, "attn_mask"), len(shape_of(node))
    if along != rank - 2 or len(shape_of(q)) != rank:
        return None
    if argument(node, "is_causal") or argument(node, "dropout_p"):
        return None
    new = {"query": edit.cut(q, along, start, stop)}
    if is_tensor(mask) and shape_of(mask)[-2] > 1:
        new["attn_mask"] = edit.cut(mask, len(shape_of(mask)) - 2, start, stop)
    return _again(edit, node, **new)


def _permute(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node:
    x, dims = operand(node), argument(node, "dims")
    own = normal_axis(dims[along], len(dims))
    return _again(edit, node, self=edit.cut(x, own, start, stop))


def _transpose(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node:
    x, one, other = operand(node), axis(node, "dim0"), axis(node, "dim1")
    own = {one: other, other: one}.get(along, along)
    return _again(edit, node, self=edit.cut(x, own, start, stop))


def _reshape(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    """Cuts the axis in front of which as much lies, where the span is a span of it as well."""
    x, after = operand(node), shape_of(node)
    before, width = shape_of(x), prod(after[along + 1 :])
    if prod(after) == 0:
        return None
    for own in range(len(before)):
        own_width = prod(before[own + 1 :])
        fits = start * width % own_width == 0 and stop * width % own_width == 0
        if prod(before[:own]) == prod(after[:along]) and fits:
            part = edit.cut(x, own, start * width // own_width, stop * width // own_width)
            shape = (*after[:along], stop - start, *after[along + 1 :])
            return edit.call(aten.reshape.default, part, [*shape])
    return None


def _expand(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node:
    x, after = operand(node), shape_of(node)
    own = along - (len(after) - len(shape_of(x)))
    if own >= 0 and shape_of(x)[own] > 1:
        x = edit.cut(x, own, start, stop)
    return edit.expand(x, (*after[:along], stop - start, *after[along + 1 :]))


def _select(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    x, gone = operand(node), axis(node)
    share = (stop - start) / shape_of(node)[along]
    if shape_of(x)[gone] > 1 and share >= 1 / shape_of(x)[gone]:
        return None
    own = along if along < gone else along + 1
    return _again(edit, node, self=edit.cut(x, own, start, stop))


def _slice(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    """Puts the smaller of two parts first, so that two rules do not alternate for ever."""
    x, other = operand(node), axis(node)
    found = bounds(node, shape_of(x)[other])
    if along == other:
        if found is None:
            return _one_of_a_stride(edit, node, start, stop)
        return edit.cut(x, along, found[0] + start, found[0] + stop)
    kept = shape_of(node)[other] / max(shape_of(x)[other], 1)
    if found is not None and 0 < kept <= 1 / 2 and (stop - start) / shape_of(node)[along] >= kept:
        return None
    return _again(edit, node, self=edit.cut(x, along, start, stop))


def _one_of_a_stride(edit: Editor, node: Node, start: int, stop: int) -> Node | None:
    """Takes a single row of every so many ones out of all."""
    x, along = operand(node), axis(node)
    given = [argument(node, name) for name in ("start", "end", "step")]
    if stop - start != 1 or not all(one is None or isinstance(one, int) for one in given):
        return None
    row = range(*slice(*given).indices(shape_of(x)[along]))[start]
    return edit.cut(x, along, row, row + 1)


def _unsqueeze(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    x, made = operand(node), argument(node, "dim") % len(shape_of(node))
    if along == made:
        return None
    own = along if along < made else along - 1
    return _again(edit, node, self=edit.cut(x, own, start, stop))


def _squeeze(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node:
    x, gone = operand(node), axis(node)
    if shape_of(x)[gone] != 1:
        return edit.cut(x, along, start, stop)
    own = along if along < gone else along + 1
    return _again(edit, node, self=edit.cut(x, own, start, stop))


def _cat(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    parts, joined = operands(node, "tensors"), axis(node, of=node)
    if any(len(shape_of(part)) != len(shape_of(node)) for part in parts):
        return None
    if along != joined:
        cuts = [edit.cut(part, along, start, stop) for part in parts]
        return edit.call(aten.cat.default, cuts, joined)
    cuts, first = [], 0
    for part in parts:
        size = shape_of(part)[along]
        low, high = max(start - first, 0), min(stop - first, size)
        if low < high:
            cuts.append(edit.cut(part, along, low, high))
        first += size
    return cuts[0] if len(cuts) == 1 else edit.call(aten.cat.default, cuts, along)


def _attention(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    if along != 2:
        return None
    return _again(edit, node, q=edit.cut(operand(node, "q"), 2, start, stop))


def _gather(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    if along != 1:
        return None
    return _gathered(edit, operand(node, "x"), operand(node, "index"), start, stop)


def _merge(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    kept = operand(node, "kept")
    if along != 1 or stop > shape_of(kept)[1]:
        return None
    return _gathered(edit, operand(node, "a"), kept, start, stop)


def _gathered(edit: Editor, x: Node, index: Node, start: int, stop: int) -> Node:
    """Takes the rows that some of an index name: where these are known, without the index."""
    if stop <= protected_rows(index):
        return edit.cut(x, 1, start, stop)
    gather = torch.ops.tokexport.gather_tokens.default
    return edit.call(gather, x, edit.cut(index, 1, start, stop))


_RULES: Final[dict[Any, Rule]] = {
    aten.masked_fill.Tensor: _pointwise,
    aten.rsub.Tensor: _pointwise,
    aten.to.dtype: _pointwise,
    aten._to_copy.default: _pointwise,
    aten.layer_norm.default: _normalised,
    aten.rms_norm.default: _normalised,
    aten.linear.default: _linear,
    aten.scaled_dot_product_attention.default: _fused_attention,
    aten.matmul.default: _matmul,
    aten.softmax.int: _softmax,
    aten._softmax.default: _softmax,
    aten.mean.dim: _reduced,
    aten.sum.dim_IntList: _reduced,
    aten.amax.default: _reduced,
    aten.amin.default: _reduced,
    aten.linalg_vector_norm.default: _reduced,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.reshape.default: _reshape,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.expand.default: _expand,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.cat.default: _cat,
}

#: The operators of the domain, by name: they are registered only when a model is compiled.
_DOMAIN: Final[dict[str, Rule]] = {
    "sized_attention": _attention,
    "gather_tokens": _gather,
    "merge_tokens": _merge,
}
