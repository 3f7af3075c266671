"""Computes only the rows that are read.

Before → after::

    head(layer_norm(x + mlp(norm(x)))[:, 0])  →  y = x[:, 0:1];  head(layer_norm(y + mlp(norm(y))))
    attention(q, k, v)[:, :, :1]              →  attention(q[:, :, :1], k, v)

A classifier reads the class token alone, so the last block needs one query, one row of attention,
one row of the MLP and its norms; nothing reads the merged tokens before that MLP then. The
rows of a fused projection's queries are cut where keys and values need all: the projection is taken
apart. A result is narrowed where all its readers take parts of one axis, together at most half of
it (a cut is work as well), and is computed as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.trim.drop_unread_columns import own_projection
from tokexport.graph_passes.torch_passes.trim.row_rules import bounds, rule_of


@dataclass(frozen=True)
class Cut:
    """A reader that takes a part of one axis.

    Attributes:
        node: The slice or selection.
        along: The axis.
        start: The first row.
        stop: The row behind the last.
        picked: Whether the axis is gone from the result.
    """

    node: Node
    along: int
    start: int
    stop: int
    picked: bool


class DropUnreadRows(TorchPass):
    """Moves selections of rows ahead of what computes the rows."""

    name: ClassVar[str] = "drop unread rows"
    comes_before: ClassVar[tuple[str, ...]] = ("drop unread columns",)

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many results it narrowed."""
        changed = 0
        # Values that only dead code reads are found once that is removed.
        while found := sum(_narrow(edit, node) for node in reversed(list(edit.graph.nodes))):
            edit.graph.eliminate_dead_code()
            changed += found
        return changed


def _narrow(edit: Editor, node: Node) -> bool:
    """Computes only the rows of a value that are read, where that is possible."""
    cuts = _cuts(node)
    if not cuts:
        return False
    along, (start, stop) = cuts[0].along, _span(cuts)
    shape = (*shape_of(node)[:along], stop - start, *shape_of(node)[along + 1 :])
    with edit.before(node):
        source = own_projection(edit, node) or node
        rule = rule_of(source)
        new = None if rule is None else rule(edit, source, along, start, stop)
    if new is None or (shape_of(new), dtype_of(new)) != (shape, dtype_of(node)):
        for made in (new, source):
            if made is not None and made is not node:
                _take_back(edit, made)
        return False
    for cut in cuts:
        with edit.before(cut.node):
            if cut.picked:
                part = edit.call(aten.select.int, new, along, cut.start - start)
            else:
                part = edit.cut(new, along, cut.start - start, cut.stop - start)
        edit.replace(cut.node, part)
    edit.graph.erase_node(node)
    return True


def _cuts(node: Node) -> list[Cut]:
    """Returns the readers of a value, if all take parts of one axis and few enough of it."""
    if not is_tensor(node):
        return []
    cuts = [_cut(user) for user in node.users]
    found = [cut for cut in cuts if cut is not None]
    if not found or len(found) < len(cuts) or len({cut.along for cut in found}) > 1:
        return []
    start, stop = _span(found)
    return found if 0 < 2 * (stop - start) <= shape_of(node)[found[0].along] else []


def _cut(user: Node) -> Cut | None:
    if is_call(user, aten.select.int):
        along, row = axis(user), argument(user, "index")
        if not isinstance(row, int):
            return None
        row %= shape_of(operand(user))[along]
        return Cut(user, along, row, row + 1, picked=True)
    if is_call(user, aten.slice.Tensor):
        along = axis(user)
        found = bounds(user, shape_of(operand(user))[along])
        if found is not None and found[0] < found[1]:
            return Cut(user, along, *found, picked=False)
    return None


def _span(cuts: list[Cut]) -> tuple[int, int]:
    return min(cut.start for cut in cuts), max(cut.stop for cut in cuts)


def _take_back(edit: Editor, node: Node) -> None:
    """Removes a value that nothing reads, and what was computed only for it."""
    ahead = [node]
    while ahead:
        one = ahead.pop()
        if one.op == "call_function" and not one.users and not one._erased:
            ahead += one.all_input_nodes
            edit.graph.erase_node(one)
