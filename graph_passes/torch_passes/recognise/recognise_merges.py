"""Recognises the kept rows and the merged rows of a match and makes them one ``merge_tokens``.

Before → after::

    cat([…, gather_tokens(a, kept),
         scatter_tokens(b, dst, gather_tokens(a, src), "sum"), …])
        →  cat([…, merge_tokens(a, b, kept, src, dst, "sum"), …])

Where both come from one match and go, whole or cut, to joins only, in whatever order, as with a
distillation token, they become parts of the merge::

    rest, merged  →  m = merge_tokens(…);  m[:, :K], m[:, K:]

Where every row of a match merges, there are no kept rows and no join::

    scatter_tokens(b, dst, gather_tokens(a, src), "sum")
        →  merge_tokens(a, b, kept (B, 0), src, dst, "sum")

and what further merges read of both, as where a second direction follows, counts as joined.

Source: the merge of ToMe (Bolya et al. 2023, section 3, figure 2).
"""

from __future__ import annotations

import operator
from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    is_call,
    operand,
    operands,
    operator_name,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass


class RecogniseMerges(TorchPass):
    """Finds kept tokens and tokens that others merged into."""

    name: ClassVar[str] = "recognise merges"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many merges there are."""
        changed = 0
        for node in list(edit.graph.nodes):
            if is_call(node, aten.cat.default):
                changed += _join_neighbours(edit, node)
        # Backwards, so that what a second direction reads of the first is merges already.
        for node in reversed(list(edit.graph.nodes)):
            if is_call(node, torch.ops.tokexport.scatter_tokens.default):
                changed += _merge_every_row(edit, node) or _join_apart(edit, node)
        scatter = torch.ops.tokexport.scatter_tokens.default
        for node in edit.graph.find_nodes(op="call_function", target=scatter):
            if node.users and (why := why_no_merge(node)):
                edit.leave(node, why)
        return changed


def why_no_merge(node: Node) -> str:
    """Says why scattered rows are no part of a merge, a clause; '' of rows that are only moved."""
    mode = argument(node, "mode")
    if mode == "none":
        return ""
    if not argument(node, "include_self"):
        return f"its {mode} leaves out the row that was there"
    if len(node.users) != 1:
        return f"its rows are read {len(node.users)} times, not joined with kept rows once"
    (user,) = node.users
    if not is_call(user, aten.cat.default):
        return f"its rows go to {operator_name(user)}, not to a join with kept rows"
    return "its rows are not joined right behind the kept rows of the same source"


def _join_neighbours(edit: Editor, node: Node) -> int:
    """Replaces neighbouring parts of a join; returns how many merges that makes."""
    if len(shape_of(node)) != 3 or axis(node, of=node) != 1:
        return 0
    parts, changed, at = operands(node, "tensors"), 0, 0
    while at + 1 < len(parts):
        rest, merged = parts[at : at + 2]
        if _fit(rest, merged) and len(merged.users) == 1:
            with edit.before(node):
                parts[at : at + 2] = [_merge(edit, operand(rest, "index"), merged)]
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
    source = operand(merged, "src")
    for rest in list(operand(source, "x").users):
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
            merge = _merge(edit, operand(rest, "index"), merged)
            kept, size = shape_of(rest)[1], shape_of(merge)[1]
            parts = edit.cut(merge, 1, 0, kept), edit.cut(merge, 1, kept, size)
        last = parts[1]
        for cut in cuts:  # some stood before what they now read
            last.append(cut)
            last = cut
        for old, new in zip((rest, merged), parts, strict=True):
            edit.replace(old, new)
        if not source.users:  # it would count as a reader of an earlier direction's rows
            edit.graph.erase_node(source)
        return True
    return False


def _merge_every_row(edit: Editor, merged: Node) -> bool:
    """Replaces the rows of a match that keeps none."""
    if not _takes_sources(merged) or not _reduces(merged):
        return False
    source = operand(merged, "src")
    match = _match_of(operand(source, "index"), operand(merged, "index"))
    if match is None or argument(match, "r") != shape_of(operand(match, "scores"))[1]:
        return False
    if shape_of(operand(source, "x"))[1] != argument(match, "r"):
        return False
    with edit.before(merged):
        kept = edit.item(match, 0)
        merge = _merge(edit, kept, merged)
    edit.replace(merged, merge)
    return True


def _merge(edit: Editor, kept: Node, merged: Node) -> Node:
    source = operand(merged, "src")
    return edit.call(
        torch.ops.tokexport.merge_tokens.default,
        operand(source, "x"),
        operand(merged, "dst"),
        kept,
        operand(source, "index"),
        operand(merged, "index"),
        argument(merged, "mode"),
    )


def _takes_sources(merged: Node) -> bool:
    return is_call(operand(merged, "src"), torch.ops.tokexport.gather_tokens.default)


def _fit(rest: Node, merged: Node) -> bool:
    """Returns whether two values are the kept rows and the merged rows of a merge."""
    domain = torch.ops.tokexport
    if not is_call(rest, domain.gather_tokens.default):
        return False
    if not is_call(merged, domain.scatter_tokens.default) or not _takes_sources(merged):
        return False
    if operand(operand(merged, "src"), "x") is not operand(rest, "x"):
        return False
    return _reduces(merged)


def _reduces(merged: Node) -> bool:
    """Returns whether a scatter reduces rows as a merge does."""
    return argument(merged, "mode") != "none" and bool(argument(merged, "include_self"))


def _of_one_match(rest: Node, merged: Node) -> bool:
    """Returns whether kept, src and dst are the three results of one match."""
    kept = operand(rest, "index")
    match = _match_of(operand(operand(merged, "src"), "index"), operand(merged, "index"))
    return match is not None and kept.target is operator.getitem and kept.args == (match, 0)


def _match_of(src: Node, dst: Node) -> Node | None:
    """Returns the match whose sources and destinations two indices are."""
    if src.target is not operator.getitem:
        return None
    match = src.args[0]
    if not isinstance(match, Node) or dst.args != (match, 2) or src.args[1] != 1:
        return None
    found = is_call(match, torch.ops.tokexport.bipartite_match.default)
    return match if found and dst.target is operator.getitem else None


def _joined(node: Node) -> list[Node] | None:
    """Returns the slices between a value and joins of rows or further merges.

    None where it goes elsewhere too.
    """
    cuts: list[Node] = []
    ahead = list(node.users)
    while ahead:
        user = ahead.pop()
        if is_call(user, aten.slice.Tensor) and axis(user) == 1:
            cuts.append(user)
            ahead += user.users
        elif is_call(user, torch.ops.tokexport.merge_tokens.default):
            continue
        elif not is_call(user, aten.cat.default) or axis(user, of=node) != 1:
            return None
    return cuts if node.users else None
