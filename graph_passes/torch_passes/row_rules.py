"""How some rows of a call's result come from some rows of its operands.

A rule takes a call, an axis of its result and a span of that axis, inserts the call on as much of
the operands as the span needs, and returns the new value; it returns None where every part of the
result needs all of the operands.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Final

import torch
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from tokexport.graph_passes.ops import NAMESPACE
from tokexport.graph_passes.torch_passes.calls import (
    argument,
    axis,
    is_tensor,
    normal_axis,
    operand,
    operands,
    shape_of,
)
from tokexport.graph_passes.torch_passes.editor import Editor, aten

Rule = Callable[[Editor, Node, int, int, int], Node | None]


def rule_of(node: Node) -> Rule | None:
    """Returns the rule of a call, or None where there is none."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return None
    if torch.Tag.pointwise in node.target.tags:
        return _pointwise
    if node.target.namespace == NAMESPACE:
        return _DOMAIN.get(node.target._schema.name.partition("::")[2])
    return _RULES.get(node.target)


def _again(edit: Editor, node: Node, new: dict[Node, Node]) -> Node:
    """Inserts a call once more, on other operands."""
    args: Any = map_arg(node.args, lambda one: new.get(one, one))
    kwargs: Any = map_arg(node.kwargs, lambda one: new.get(one, one))
    return edit.call(node.target, *args, **kwargs)


def _pointwise(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node:
    rank, new = len(shape_of(node)), {}
    for one in node.all_input_nodes:
        if is_tensor(one):
            own = along - (rank - len(shape_of(one)))
            if own >= 0 and shape_of(one)[own] > 1:
                new[one] = edit.cut(one, own, start, stop)
    return _again(edit, node, new)


def _normalised(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    x = operand(node, "input")
    if along >= len(shape_of(x)) - len(argument(node, "normalized_shape")):
        return None
    return _again(edit, node, {x: edit.cut(x, along, start, stop)})


def _linear(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    x = operand(node, "input")
    if along == len(shape_of(node)) - 1:
        return None
    return _again(edit, node, {x: edit.cut(x, along, start, stop)})


def _matmul(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    x, rank = operand(node), len(shape_of(node))
    if along != rank - 2 or len(shape_of(x)) != rank or x is operand(node, "other"):
        return None
    return _again(edit, node, {x: edit.cut(x, along, start, stop)})


def _softmax(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    x = operand(node)
    if along == axis(node):
        return None
    return _again(edit, node, {x: edit.cut(x, along, start, stop)})


def _reduced(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    x, dims = operand(node), argument(node, "dim")
    if not argument(node, "keepdim") or not dims:
        return None
    if along in {normal_axis(one, len(shape_of(x))) for one in dims}:
        return None
    return _again(edit, node, {x: edit.cut(x, along, start, stop)})


def _permute(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node:
    x, dims = operand(node), argument(node, "dims")
    own = normal_axis(dims[along], len(dims))
    return _again(edit, node, {x: edit.cut(x, own, start, stop)})


def _transpose(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node:
    x, one, other = operand(node), axis(node, "dim0"), axis(node, "dim1")
    own = {one: other, other: one}.get(along, along)
    return _again(edit, node, {x: edit.cut(x, own, start, stop)})


def _reshape(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    x, after = operand(node), shape_of(node)
    before = shape_of(x)
    for own, size in enumerate(before):
        if size == after[along] and prod(before[:own]) == prod(after[:along]):
            shape = (*after[:along], stop - start, *after[along + 1 :])
            return edit.call(aten.reshape.default, edit.cut(x, own, start, stop), [*shape])
    return None


def _expand(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node:
    x, after = operand(node), shape_of(node)
    own = along - (len(after) - len(shape_of(x)))
    if own >= 0 and shape_of(x)[own] > 1:
        x = edit.cut(x, own, start, stop)
    return edit.expand(x, (*after[:along], stop - start, *after[along + 1 :]))


def _select(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node:
    x, gone = operand(node), axis(node)
    own = along if along < gone else along + 1
    return _again(edit, node, {x: edit.cut(x, own, start, stop)})


def _slice(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    x = operand(node)
    if along != axis(node):
        return _again(edit, node, {x: edit.cut(x, along, start, stop)})
    if argument(node, "step") != 1:
        return None
    first = slice(argument(node, "start"), argument(node, "end")).indices(shape_of(x)[along])[0]
    return edit.cut(x, along, first + start, first + stop)


def _unsqueeze(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    x, made = operand(node), argument(node, "dim") % len(shape_of(node))
    if along == made:
        return None
    own = along if along < made else along - 1
    return _again(edit, node, {x: edit.cut(x, own, start, stop)})


def _cat(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node:
    parts, joined = operands(node, "tensors"), axis(node, of=node)
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
    q = operand(node, "q")
    if along != 2 or q in (operand(node, "k"), operand(node, "v")):
        return None
    return _again(edit, node, {q: edit.cut(q, along, start, stop)})


def _gather(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    index = operand(node, "index")
    if along != 1:
        return None
    return _again(edit, node, {index: edit.cut(index, 1, start, stop)})


def _merge(edit: Editor, node: Node, along: int, start: int, stop: int) -> Node | None:
    kept = operand(node, "kept")
    if along != 1 or stop > shape_of(kept)[1]:
        return None
    gather = torch.ops.tokexport.gather_tokens.default
    return edit.call(gather, operand(node, "a"), edit.cut(kept, 1, start, stop))


_RULES: Final[dict[Any, Rule]] = {
    aten.layer_norm.default: _normalised,
    aten.rms_norm.default: _normalised,
    aten.linear.default: _linear,
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
    aten.cat.default: _cat,
}

#: The operators of the domain, by name: they are registered only when a model is compiled.
_DOMAIN: Final[dict[str, Rule]] = {
    "sized_attention": _attention,
    "gather_tokens": _gather,
    "merge_tokens": _merge,
}
