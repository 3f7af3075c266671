"""Gives rules for calls that slice, split or flip an axis of padded rows.

Before → after::

    y[:, -1]               index_select(y', 1, sum(valid) - 1), and a check that there is a row
    y[:, 1::2]             y'[:, 1::2]; valid = valid[1::2]
    y[:, :-1]              y'; valid = arange(cap) < sum(valid) - 1
    flip(y, 1)             index_select(y', 1, max(sum(valid) - 1 - arange(cap), 0))
    split(x, [u, v], 1)    index_select(x, 1, start + arange(room)); valid = arange(room) < u
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.stack_traces import source_line
from tokexport.graph_passes.torch_passes.graph.calls import argument, normal_axis, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.pad.op_rules import Rule
from tokexport.graph_passes.torch_passes.pad.padded_rows import Padded, refused
from tokexport.graph_passes.torch_passes.pad.row_places import from_the_front, length_of

#: The end of a slice that goes to the end of its axis.
_NO_END: Final = 1 << 62


def select(padded: Padded, node: Node) -> None:
    """One row; of a padded axis, one that is always there, or one of those that come first."""
    x, edit = padded.new(node.args[0]), padded.edit
    position = padded.new(argument(node, "index"))
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    valid = padded.valid(x)
    own = valid.get(dim)
    found = {axis - (axis > dim): one for axis, one in valid.items() if axis != dim}
    known = isinstance(position, int)
    if known and (own is None or 0 <= position < own.always_valid):
        padded.set(node, edit.call(node.target, x, dim, position), found)
        return
    if own is not None and not own.is_prefix:
        raise refused(node, "it reads a row that may be padding")
    if own is not None and known:
        least = position + 1 if position >= 0 else -position
        some = edit.call(aten.ge.Scalar, own.count, least)
        padded.require(some, "rows", f"fewer than {least} rows are chosen", source_line(node))
        if 0 <= position < shape_of(x)[dim]:
            padded.set(node, edit.call(node.target, x, dim, position), found)
            return
        position = padded.constant((), position, torch.int64)
    row = edit.view(from_the_front(padded, position, length_of(padded, x, dim)), [1])
    row = edit.call(aten.clamp.default, row, 0, shape_of(x)[dim] - 1)
    one = edit.call(aten.index_select.default, x, dim, row)
    padded.set(node, edit.call(aten.squeeze.dim, one, dim), found)


def _edge(padded: Padded, given: Any, length: Node) -> Node:
    """Returns where a cut begins or ends, of rank 0, between 0 and the length."""
    edit = padded.edit
    if isinstance(given, int):
        given = padded.constant((), given, torch.int64)
    place = from_the_front(padded, given, length)
    return edit.call(aten.minimum.default, edit.call(aten.clamp_min.default, place, 0), length)


def slice_(padded: Padded, node: Node) -> None:
    """Cuts an axis, where rows come first; others only behind the first few that always do."""
    x = padded.new(node.args[0])
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    valid, size = padded.valid(x), shape_of(x)[dim]
    own, others = valid.get(dim), {a: one for a, one in valid.items() if a != dim}
    after = node.meta["val"].shape[dim]
    start, end, step = (padded.new(argument(node, name)) for name in ("start", "end", "step"))
    start = 0 if start is None else start
    to_the_end = end is None or (isinstance(end, int) and end >= _NO_END)
    if own is None and not isinstance(start, Node) and not isinstance(end, Node):
        padded.set(node, padded.edit.call(aten.slice.Tensor, x, dim, start, end, step), valid)
        return
    if own is not None and isinstance(start, int) and start >= 0:
        if isinstance(after, int) and 0 <= start + (after - 1) * step < own.always_valid:
            stop = start + (after - 1) * step + 1
            new = padded.edit.call(aten.slice.Tensor, x, dim, start, stop, step)
            padded.set(node, new, others)
            return
        behind = own.is_prefix or (start <= own.always_valid and step == 1)
        if to_the_end and behind and not isinstance(after, int):
            whole = (start, step) == (0, 1)
            new = x if whole else padded.edit.call(aten.slice.Tensor, x, dim, start, size, step)
            padded.set(node, new, {**others, dim: own if whole else padded.cut(own, start, step)})
            return
    if own is not None and not own.is_prefix:
        raise refused(node, "it cuts rows that are padded inside other than behind the first few")
    _by_numbers(padded, node, x, dim, (start, None if to_the_end else end, step))


def _by_numbers(
    padded: Padded, node: Node, x: Node, dim: int, places: tuple[Any, Any, int]
) -> None:
    """Cuts an axis whose rows come first, from and to places that the data says, or its length."""
    edit, (start, end, step) = padded.edit, places
    valid, size = padded.valid(x), shape_of(x)[dim]
    others = {a: one for a, one in valid.items() if a != dim}
    after = node.meta["val"].shape[dim]
    length = length_of(padded, x, dim)
    first = start == 0 if isinstance(start, int) else False
    stop = length if end is None else _edge(padded, end, length)
    begin = None if first else _edge(padded, start, length)
    count = stop if begin is None else edit.call(aten.sub.Tensor, stop, begin)
    count = edit.call(aten.clamp_min.default, count, 0)
    if step != 1:
        more = edit.call(aten.add.Tensor, count, step - 1)
        count = edit.call(aten.div.Tensor_mode, more, step, rounding_mode="floor")
    if isinstance(after, int):
        room = after
        same = edit.call(aten.eq.Scalar, count, after)
        padded.require(same, "rows", f"there are no {after} rows to take", source_line(node))
    else:
        most = -(-size // step)
        known = padded.most(end)
        if dim in valid or known is not None:
            up_to = known if known is not None and known > 0 else most
            padded.set_most(count, min(most, up_to))
        rows = padded.of_number(node, count, most)
        room, others = shape_of(rows.mask)[0], {**others, dim: rows}
    if first and step == 1 and room <= size:
        padded.set(node, edit.call(aten.slice.Tensor, x, dim, 0, room), others)
        return
    taken = edit.call(aten.mul.Tensor, padded.counted(room), step)
    if begin is not None:
        taken = edit.call(aten.add.Tensor, taken, begin)
    taken = edit.call(aten.clamp.default, taken, 0, size - 1)
    padded.set(node, edit.call(aten.index_select.default, x, dim, taken), others)


def split(padded: Padded, node: Node) -> None:
    """Unbind, split and chunk along an axis that is not padded, or into parts of given counts."""
    args = padded.new(node.args)
    x = args[0]
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    valid = padded.valid(x)
    if node.target is aten.split_with_sizes.default:
        sizes = padded.new(argument(node, "split_sizes"))
        if dim in valid or any(isinstance(size, Node) for size in sizes):
            _by_counts(padded, node, x, dim, sizes)
            return
    if dim in valid:
        raise refused(node, "it splits the padded rows")
    gone = node.target is aten.unbind.int
    found = {axis - (gone and axis > dim): one for axis, one in valid.items()}
    padded.set(node, padded.edit.call(node.target, *args), found)


def _by_counts(padded: Padded, node: Node, x: Node, dim: int, sizes: list[Any]) -> None:
    """Takes the parts of an axis one behind another, as long as numbers of the data say."""
    valid, edit, size = padded.valid(x), padded.edit, shape_of(x)[dim]
    if dim in valid and not valid[dim].is_prefix:
        raise refused(node, "it splits rows that are padded inside")
    others = {a: one for a, one in valid.items() if a != dim}
    start: Any = padded.constant((), 0, torch.int64)
    parts = []
    for count in sizes:
        found, room = dict(others), count
        if isinstance(count, Node):
            found[dim] = padded.of_number(node, count, size)
            room = shape_of(found[dim].mask)[0]
        rows = edit.call(aten.add.Tensor, padded.counted(room), start)
        rows = edit.call(aten.clamp.default, rows, 0, size - 1)
        parts.append(edit.call(aten.index_select.default, x, dim, rows))
        padded.note(parts[-1], found)
        start = edit.call(aten.add.Tensor, start, count)
    all_of_it = edit.call(aten.eq.Tensor, start, length_of(padded, x, dim))
    padded.require(all_of_it, "rows", "the parts are not as long as the whole", source_line(node))
    padded.set(node, parts)


def flip(padded: Padded, node: Node) -> None:
    """Reverses the order of rows; a prefix stays a prefix."""
    x, edit = padded.new(node.args[0]), padded.edit
    rank, valid = len(shape_of(x)), padded.valid(x)
    dims = [normal_axis(dim, rank) for dim in argument(node, "dims")]
    fixed = [dim for dim in dims if dim not in valid]
    new = edit.call(aten.flip.default, x, fixed) if fixed else x
    for dim in dims:
        if dim not in valid:
            continue
        if not valid[dim].is_prefix:
            raise refused(node, "it turns rows that are padded inside")
        last = edit.call(aten.sub.Tensor, valid[dim].count, 1)
        rows = edit.call(aten.sub.Tensor, last, padded.counted(shape_of(x)[dim]))
        rows = edit.call(aten.clamp_min.default, rows, 0)
        new = edit.call(aten.index_select.default, new, dim, rows)
    padded.set(node, new, valid)


def roll(padded: Padded, node: Node) -> None:
    """Moves rows along, the last ones to the front."""
    x, edit = padded.new(node.args[0]), padded.edit
    valid, shifts = padded.valid(x), padded.new(argument(node, "shifts"))
    dims = [normal_axis(dim, len(shape_of(x))) for dim in argument(node, "dims")]
    if not dims or any(isinstance(shift, Node) for shift in shifts):
        raise refused(node, "it moves all numbers, or as far as the data says")
    for dim, shift in zip(dims, shifts, strict=True):
        if dim not in valid:
            x = edit.call(aten.roll.default, x, [shift], [dim])
            continue
        if not valid[dim].is_prefix:
            raise refused(node, "it moves rows that are padded inside")
        some = edit.call(aten.clamp_min.default, valid[dim].count, 1)
        rows = edit.call(aten.sub.Tensor, padded.counted(shape_of(x)[dim]), shift)
        rows = edit.call(aten.remainder.Tensor, rows, some)
        x = edit.call(aten.index_select.default, x, dim, rows)
    padded.set(node, x, valid)


CUT_RULES: Final[dict[object, Rule]] = {
    aten.select.int: select,
    aten.slice.Tensor: slice_,
    aten.unbind.int: split,
    aten.split.Tensor: split,
    aten.split_with_sizes.default: split,
    aten.chunk.default: split,
    aten.flip.default: flip,
    aten.roll.default: roll,
}
