"""Removes tensors without elements from the graph.

Before → after::

    cat([x, empty], d)                              →  x, in the result's dtype
    scatter…(x, d, no index, …), index_put(x, no index, …), slice_scatter(x, empty, …)  →  x
    scatter_tokens(x, no index, …)                  →  x
    split_with_sizes(x, [3, 0, 4], d)               →  x[:3], –, x[3:]
    bipartite_match(scores (B, Na, Nb), 0, index)   →  kept = 0 … Na − 1
    bipartite_match(scores, 0, score)               →  kept = src of bipartite_match(scores, Na)
    merge_tokens(a, b, kept, no src, no dst, mode)  →  cat([gather_tokens(a, kept), b], 1)
    merge_tokens(a, b, no kept, src, dst, mode)     →  scatter_tokens(b, dst, gather_tokens(a, src))
    addmm(bias, (M, 0), (0, N)), linear of no columns  →  bias, expanded
    sum, prod, pad, matmul, attention of nothing    →  the constant that it is

The calls that made an empty tensor are removed with its last reader. OpenVINO's front end ends the
process at a gather of no rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    operands,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass

tokens = torch.ops.tokexport

#: Calls that write into a tensor of their result's shape; nothing, where another operand is empty.
_WRITES: Final = frozenset(
    {
        aten.scatter.src,
        aten.scatter.value,
        aten.scatter.reduce,
        aten.scatter_add.default,
        aten.scatter_reduce.two,
        aten.index_add.default,
        aten.index_copy.default,
        aten.index_fill.int_Scalar,
        aten.index_put.default,
        aten.slice_scatter.default,
    }
)
#: Calls that sum over an axis: of none of it they give the same whatever else they read.
_CONTRACTIONS: Final = frozenset(
    {
        aten.mm.default,
        aten.bmm.default,
        aten.matmul.default,
        aten.einsum.default,
        aten.scaled_dot_product_attention.default,
    }
)


class DropEmpty(TorchPass):
    """Removes reads of tensors without elements, in the calls that it knows."""

    name: ClassVar[str] = "drop empty tensors"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many calls changed."""
        changed = 0
        for node in list(edit.graph.nodes):
            if node.op == "call_function" and node.users:
                changed += _without_empty(edit, node)
        return changed


def is_empty(node: object) -> bool:
    """Returns whether the argument is a node that gives a tensor without elements."""
    return is_tensor(node) and isinstance(node, Node) and 0 in shape_of(node)


def _without_empty(edit: Editor, node: Node) -> bool:
    """Replaces a call that reads or gives something empty and gives something that is not."""
    if is_call(node, aten.split_with_sizes.default):
        return _split(edit, node)
    if _is_token_call(node, "bipartite_match"):
        return _match(edit, node)
    if not is_tensor(node) or is_empty(node) or not any(map(is_empty, node.all_input_nodes)):
        return False
    with edit.before(node):
        found = _replacement(edit, node)
    if found is None:
        return False
    edit.replace(node, found)
    return True


def _replacement(edit: Editor, node: Node) -> Node | None:
    if is_call(node, aten.cat.default):
        return _cat(edit, node)
    if node.target in _WRITES:
        return operand(node)
    if _is_token_call(node, "scatter_tokens"):
        return operand(node, "dst")
    if _is_token_call(node, "merge_tokens"):
        return _merge(edit, node)
    if is_call(node, aten.addmm.default, aten.baddbmm.default):
        plain = argument(node, "beta") == 1
        return edit.expand(operand(node), shape_of(node)) if plain else None
    if is_call(node, aten.linear.default) and argument(node, "bias") is not None:
        return edit.expand(operand(node, "bias"), shape_of(node))
    return _constant(edit, node)


def _cat(edit: Editor, node: Node) -> Node:
    full = [part for part in operands(node, "tensors") if not is_empty(part)]
    if any(dtype_of(part) != dtype_of(node) for part in full):
        full = [edit.call(aten._to_copy.default, part, dtype=dtype_of(node)) for part in full]
    if len(full) == 1:
        return full[0]
    return edit.call(aten.cat.default, full, axis(node, of=full[0]))


def _merge(edit: Editor, node: Node) -> Node:
    a, b, kept, src, dst = (operand(node, name) for name in ("a", "b", "kept", "src", "dst"))
    parts = []
    if not is_empty(kept):
        parts.append(edit.call(tokens.gather_tokens.default, a, kept))
    if not is_empty(b):
        mode = argument(node, "mode")
        if mode != "none" and not is_empty(src):
            moved = edit.call(tokens.gather_tokens.default, a, src)
            b = edit.call(tokens.scatter_tokens.default, b, dst, moved, mode, True)
        parts.append(b)
    return parts[0] if len(parts) == 1 else edit.call(aten.cat.default, parts, 1)


def _match(edit: Editor, node: Node) -> bool:
    """Replaces a match of no rows by the rows that it keeps."""
    scores = operand(node, "scores")
    batch, rows, columns = shape_of(scores)
    if argument(node, "r") != 0 or 0 in (batch, rows, columns):
        return False

    def kept() -> Node:
        if argument(node, "order") == "index":
            return edit.constant(torch.arange(rows).expand(batch, rows))
        ranked = edit.call(tokens.bipartite_match.default, scores, rows, "score")
        return edit.item(ranked, 1)

    return _replace_items(edit, node, lambda position: kept() if position == 0 else None)


def _split(edit: Editor, node: Node) -> bool:
    """Replaces the parts of a split by slices, where one of them is empty."""
    sizes = [int(size) for size in argument(node, "split_sizes")]
    if 0 not in sizes or is_empty(operand(node)):
        return False

    def part(position: int) -> Node | None:
        start = sum(sizes[:position])
        stop = start + sizes[position]
        return edit.cut(operand(node), axis(node), start, stop) if stop > start else None

    return _replace_items(edit, node, part)


def _replace_items(edit: Editor, node: Node, made: Callable[[int], Node | None]) -> bool:
    """Replaces those results of a call for which a replacement is made."""
    changed = False
    for item in list(node.users):
        if not item.users:
            continue
        with edit.before(item):
            found = made(item.args[1])  # type: ignore[arg-type]
        if found is not None:
            edit.replace(item, found)
            changed = True
    return changed


def _constant(edit: Editor, node: Node) -> Node | None:
    """Returns the result of a call that reads nothing that matters."""
    target: Any = node.target
    reads = node.all_input_nodes
    drawn = torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
    if not (_is_contraction(node) or (all(map(is_empty, reads)) and not drawn)):
        return None

    def zeros(one: Node) -> Tensor:
        return torch.zeros(shape_of(one), dtype=dtype_of(one))

    args, kwargs = map_arg((node.args, node.kwargs), zeros)
    with torch.no_grad():
        found = target(*args, **kwargs)
    return edit.constant(found)


def _is_contraction(node: Node) -> bool:
    bare_linear = is_call(node, aten.linear.default) and argument(node, "bias") is None
    attention = _is_token_call(node, "sized_attention")
    return node.target in _CONTRACTIONS or bare_linear or attention


def _is_token_call(node: Node, name: str) -> bool:
    """Returns whether a node calls an operator of the domain, which need not be registered."""
    return getattr(node.target, "namespace", "") == "tokexport" and (
        str(node.target) == f"tokexport.{name}.default"
    )
