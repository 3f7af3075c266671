"""Recognises the kept rows and the merged rows of a match and makes them one ``merge_tokens``.

Before → after::

    cat([…, gather_tokens(a, kept),
         scatter_tokens(b, dst, gather_tokens(a, src), "sum"), …])
        →  cat([…, merge_tokens(a, b, kept, src, dst, "sum"), …])

Where both come from one match and go, whole or cut, to joins only, in whatever order, as with a
distillation token, they become parts of the merge::

    rest, merged  →  m = merge_tokens(…);  m[:, :K], m[:, K:]

Source: the merge of ToMe (Bolya et al. 2023, section 3, figure 2).
"""

from __future__ import annotations

import operator
from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.calls import (
    argument,
    axis,
    is_call,
    operand,
    operands,
    shape_of,
)
from tokexport.graph_passes.torch_passes.editor import Editor, aten
from tokexport.graph_passes.torch_passes.infrastructure import TorchPass


class RecogniseMerges(TorchPass):
    """Finds tokens that are kept and tokens that took others in."""

    name: ClassVar[str] = "recognise merges"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many merges there are."""
        changed = 0
        for node in list(edit.graph.nodes):
            if is_call(node, aten.cat.default):
                changed += _join_neighbours(edit, node)
        for node in list(edit.graph.nodes):
            if is_call(node, torch.ops.tokexport.scatter_tokens.default):
                changed += _join_apart(edit, node)
        return changed


def _join_neighbours(edit: Editor, node: Node) -> int:
    """Replaces neighbouring parts of a join; returns how many merges that makes."""
    if len(shape_of(node)) != 3 or axis(node, of=node) != 1:
        return 0
    parts, changed, at = operands(node, "tensors"), 0, 0
    while at + 1 < len(parts):
        rest, merged = parts[at : at + 2]
        if _fit(rest, merged) and len(merged.users) == 1:
            with edit.before(node):
                parts[at : at + 2] = [_merge(edit, rest, merged)]
            changed += 1
        at += 1
    if not changed:
        return 0
    if len(parts) == 1:
        edit.replace(node, parts[0])
    else:
        node.update_arg(0, parts)
    return changed


def _join_apart(edit: Editor, merged: Node) -> bool:
    """Replaces the rows of one match that joins take in another order, or in pieces."""
    readers = _joined(merged)
    if readers is None or not _takes_sources(merged):
        return False
    for rest in list(operand(operand(merged, "src"), "x").users):
        others = _joined(rest)
        if others is None or not _fit(rest, merged) or not _of_one_match(rest, merged):
            continue
        places = {node: place for place, node in enumerate(edit.graph.nodes)}
        later = max((rest, merged), key=places.__getitem__)
        cuts = sorted({*readers, *others}, key=places.__getitem__)
        joins = [user for node in (rest, merged, *cuts) for user in node.users if user not in cuts]
        if min(places[join] for join in joins) < places[later]:
            continue
        with edit.after(later, origin=merged):
            merge = _merge(edit, rest, merged)
            kept, size = shape_of(rest)[1], shape_of(merge)[1]
            parts = edit.cut(merge, 1, 0, kept), edit.cut(merge, 1, kept, size)
        last = parts[1]
        for cut in cuts:  # some stood before what they now read
            last.append(cut)
            last = cut
        for old, new in zip((rest, merged), parts, strict=True):
            edit.replace(old, new)
        return True
    return False


def _merge(edit: Editor, rest: Node, merged: Node) -> Node:
    return edit.call(
        torch.ops.tokexport.merge_tokens.default,
        operand(rest, "x"),
        operand(merged, "dst"),
        operand(rest, "index"),
        operand(operand(merged, "src"), "index"),
        operand(merged, "index"),
        argument(merged, "mode"),
    )


def _takes_sources(merged: Node) -> bool:
    return is_call(operand(merged, "src"), torch.ops.tokexport.gather_tokens.default)


def _fit(rest: Node, merged: Node) -> bool:
    """Tells whether two values are the kept rows and the merged rows of a merge."""
    domain = torch.ops.tokexport
    if not is_call(rest, domain.gather_tokens.default):
        return False
    if not is_call(merged, domain.scatter_tokens.default) or not _takes_sources(merged):
        return False
    if operand(operand(merged, "src"), "x") is not operand(rest, "x"):
        return False
    return argument(merged, "mode") != "none" and bool(argument(merged, "include_self"))


def _of_one_match(rest: Node, merged: Node) -> bool:
    """Tells whether kept, src and dst are the three results of one match."""
    source = operand(merged, "src")
    results = [operand(part, "index") for part in (rest, source, merged)]
    if any(result.target is not operator.getitem for result in results):
        return False
    match = results[0].args[0]
    if not is_call(match, torch.ops.tokexport.bipartite_match.default):
        return False
    return all(result.args == (match, place) for place, result in enumerate(results))


def _joined(node: Node) -> list[Node] | None:
    """Returns the cuts on the way of a value to joins of rows, or None where it goes elsewhere."""
    cuts: list[Node] = []
    ahead = list(node.users)
    while ahead:
        user = ahead.pop()
        if is_call(user, aten.slice.Tensor) and axis(user) == 1:
            cuts.append(user)
            ahead += user.users
        elif not is_call(user, aten.cat.default) or axis(user, of=node) != 1:
            return None
    return cuts if node.users else None
