"""Pads scatters: a padding row goes to a place after the last, which is cut off.

Before → after::

    scatter_reduce(x, 1, index, src, "sum")     x and a row to lose; index where valid, else behind
                                                the last; the scatter; all but that row
"""

from __future__ import annotations

from typing import Any, Final

from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import argument, normal_axis, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.pad.indexing import lost, with_a_row_to_lose
from tokexport.graph_passes.torch_passes.pad.op_rules import Rule
from tokexport.graph_passes.torch_passes.pad.padded_rows import Padded, refused


def scatter(padded: Padded, node: Node) -> None:
    """Pads scatter, scatter_add and scatter_reduce, with an index for every number."""
    args = padded.new(node.args)
    x, _, index = args[:3]
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    parts = [x, index, *[part for part in args[3:4] if isinstance(part, Node)]]
    own = padded.valid(x).get(dim)
    if own is not None and not own.is_prefix:
        raise refused(node, "it writes at positions among rows that are padded inside")
    if len(parts) > 2 and not shape_of(parts[2]) and shape_of(x):
        parts.pop()  # a number that the data says

    def place(position: int, axis: int) -> Any:
        return (axis, position > 0) if axis == dim else axis

    parts, found = padded.meet(node, parts, place)
    wanted = {a: one for a, one in padded.valid(parts[0]).items() if a != dim}
    rows = padded.valid(parts[1])
    if {a: one for a, one in rows.items() if a != dim} != wanted:
        raise refused(node, "the rows that it writes and their places were chosen differently")
    if len(parts) > 2 and padded.valid(parts[2]) != rows:
        raise refused(node, "the rows that it writes and their places were chosen differently")
    x, index = parts[:2]
    args[3:4] = [*parts[2:], *args[3:4]][:1]
    size, valid = shape_of(x)[dim], padded.valid(x)
    for axis, one in rows.items():
        index = lost(padded, index, one, axis, size)
        padded.note(index, rows)
    wide = with_a_row_to_lose(padded, x, dim) if rows else x
    new = padded.edit.call(node.target, wide, dim, index, *args[3:], **padded.named(node))
    if rows:
        new = padded.edit.call(aten.slice.Tensor, new, dim, 0, size)
    padded.set(node, new, valid)


def index_add(padded: Padded, node: Node) -> None:
    """Pads index_add, index_copy and index_reduce, with an index (K,) for every row."""
    args = padded.new(node.args)
    x, _, index, source = args[:4]
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    own = padded.valid(x).get(dim)
    if own is not None and not own.is_prefix:
        raise refused(node, "it writes at positions among rows that are padded inside")

    def place(position: int, axis: int) -> Any:
        if position == 1:
            return "rows"
        return ("rows" if position else "into") if axis == dim else axis

    (x, index, source), found = padded.meet(node, (x, index, source), place)
    rows = found.get("rows")
    valids = [{a: one for a, one in padded.valid(part).items() if a != dim} for part in (x, source)]
    if valids[0] != valids[1]:
        raise refused(node, "the rows that it writes and their places were chosen differently")
    both = padded.valid(index).get(0), padded.valid(source).get(dim)
    if both[0] is not both[1]:
        raise refused(node, "the rows that it writes and their places were chosen differently")
    size, valid = shape_of(x)[dim], padded.valid(x)
    wide = x
    if rows is not None:
        index = lost(padded, index, rows, 0, size)
        wide = with_a_row_to_lose(padded, x, dim)
    new = padded.edit.call(node.target, wide, dim, index, source, *args[4:], **padded.named(node))
    if rows is not None:
        new = padded.edit.call(aten.slice.Tensor, new, dim, 0, size)
    padded.set(node, new, valid)


def select_scatter(padded: Padded, node: Node) -> None:
    """One row, in the place of another that is always there or among the first."""
    x, source = padded.new(node.args[0]), padded.new(node.args[1])
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    index, own = padded.new(argument(node, "index")), padded.valid(x).get(dim)
    known = isinstance(index, int) and (own is None or (index >= 0 and own.is_prefix))
    if not known and not (
        isinstance(index, int) and own is not None and 0 <= index < own.always_valid
    ):
        raise refused(node, "it writes a row that may be padding")
    (x, source), _ = padded.meet(
        node, (x, source), lambda at, a: (a + (a >= dim) if at else a) if at or a != dim else None
    )
    others = {a: one for a, one in padded.valid(x).items() if a != dim}
    if {a + (a >= dim): one for a, one in padded.valid(source).items()} != others:
        raise refused(node, "the rows that it writes and their places were chosen differently")
    new = padded.edit.call(node.target, x, source, dim, index)
    padded.set(node, new, padded.valid(x))


def slice_scatter(padded: Padded, node: Node) -> None:
    """Rows in the place of others: of an axis that is not padded, or of all behind the first."""
    x, source = padded.new(node.args[0]), padded.new(node.args[1])
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    start, end, step = (argument(node, name) for name in ("start", "end", "step"))
    (x, source), found = padded.meet(node, (x, source), lambda _, a: None if a == dim else a)
    others = [{a: e for a, e in padded.valid(p).items() if a != dim} for p in (x, source)]
    if others[0] != others[1]:
        raise refused(node, "the rows that it writes and their places were chosen differently")
    rows, own = padded.valid(source).get(dim), padded.valid(x).get(dim)
    if rows is None and own is None:
        new = padded.edit.call(node.target, x, source, dim, start, end, step)
        padded.set(node, new, found)
        return
    start = 0 if start is None else start
    first = (
        isinstance(start, int)
        and own is not None
        and (0 <= start <= own.always_valid or own.is_prefix)
    )
    to_the_end = end is None or (isinstance(end, int) and end >= 1 << 62)
    if not first or not to_the_end or step != 1 or rows is None:
        raise refused(node, "it writes padded rows other than behind the first few")
    parts = [padded.edit.cut(x, dim, 0, start)] if start else []
    new = padded.edit.call(aten.cat.default, [*parts, source], dim) if start else source
    valid = padded.joined([start, rows]) if start else rows
    padded.set(node, new, {**found, dim: valid})


SCATTER_RULES: Final[dict[object, Rule]] = {
    aten.scatter.src: scatter,
    aten.scatter.value: scatter,
    aten.scatter.reduce: scatter,
    aten.scatter.value_reduce: scatter,
    aten.scatter_add.default: scatter,
    aten.scatter_reduce.two: scatter,
    aten.select_scatter.default: select_scatter,
    aten.slice_scatter.default: slice_scatter,
    aten.index_add.default: index_add,
    aten.index_copy.default: index_add,
    aten.index_reduce.default: index_add,
}
