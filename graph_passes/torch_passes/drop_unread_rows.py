"""Computes only the rows that are read.

Before → after::

    head(layer_norm(x + mlp(norm(x)))[:, 0])  →  y = x[:, 0:1];  head(layer_norm(y + mlp(norm(y))))
    attention(q, k, v)[:, :, :1]              →  attention(q[:, :, :1], k, v)

A classifier reads the class token alone, so the last block needs one query, one row of attention,
one row of the MLP and its norms; what merged tokens before that MLP is then read by nobody. The
rows of a fused projection's queries are cut where keys and values need all: the projection is taken
apart. A result is narrowed where all its readers take parts of one axis, and computed as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node

from tokexport.graph_passes.torch_passes.calls import (
    argument,
    axis,
    is_call,
    is_tensor,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.drop_unread_columns import own_projection
from tokexport.graph_passes.torch_passes.editor import Editor, aten
from tokexport.graph_passes.torch_passes.infrastructure import TorchPass
from tokexport.graph_passes.torch_passes.row_rules import rule_of


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
        ahead = [node for node in edit.graph.nodes if node.op == "call_function"]
        while ahead:
            node = ahead.pop()
            if node._erased or not node.users:
                continue
            cuts = _cuts(node)
            if not cuts:
                continue
            sources = node.all_input_nodes
            new = _narrowed(edit, node, cuts)
            if new is not None:
                changed += 1
                ahead += [*sources, *new.all_input_nodes, new]
        return changed


def _cuts(node: Node) -> list[Cut]:
    """Returns the readers of a value, if all take parts of one axis and not all of it."""
    if not is_tensor(node):
        return []
    cuts = [_cut(user) for user in node.users]
    found = [cut for cut in cuts if cut is not None]
    if not found or len(found) < len(cuts) or len({cut.along for cut in found}) > 1:
        return []
    start, stop = _span(found)
    return found if 0 < stop - start < shape_of(node)[found[0].along] else []


def _cut(user: Node) -> Cut | None:
    if is_call(user, aten.select.int):
        along = axis(user)
        row = argument(user, "index") % shape_of(operand(user))[along]
        return Cut(user, along, row, row + 1, picked=True)
    if is_call(user, aten.slice.Tensor) and argument(user, "step") == 1:
        along = axis(user)
        size = shape_of(operand(user))[along]
        start, stop, _ = slice(argument(user, "start"), argument(user, "end")).indices(size)
        return Cut(user, along, start, stop, picked=False) if start < stop else None
    return None


def _span(cuts: list[Cut]) -> tuple[int, int]:
    return min(cut.start for cut in cuts), max(cut.stop for cut in cuts)


def _narrowed(edit: Editor, node: Node, cuts: list[Cut]) -> Node | None:
    """Replaces what reads a value by what reads its read rows; returns these, or None."""
    start, stop = _span(cuts)
    with edit.before(node):
        own = own_projection(edit, node)
        source = node if own is None else own
        rule = rule_of(source)
        new = None if rule is None else rule(edit, source, cuts[0].along, start, stop)
    if new is None or new is node:
        return None
    for cut in cuts:
        with edit.before(cut.node):
            if cut.picked:
                part = edit.call(aten.select.int, new, cut.along, cut.start - start)
            else:
                part = edit.cut(new, cut.along, cut.start - start, cut.stop - start)
        edit.replace(cut.node, part)
    edit.graph.erase_node(node)
    return new
