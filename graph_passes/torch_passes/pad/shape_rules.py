"""Gives rules for calls that move axes, join or read rows, on padded rows."""

from __future__ import annotations

from math import prod
from typing import Any, Final

from torch.fx import Node

from tokexport.graph_passes.stack_traces import source_line
from tokexport.graph_passes.torch_passes.graph.calls import argument, normal_axis, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.pad.op_rules import Rule
from tokexport.graph_passes.torch_passes.pad.padded_rows import Padded, ValidRows, refused


def regroup(padded: Padded, node: Node) -> None:
    """View, reshape, flatten, squeeze: a padded axis must stay an axis of its own."""
    x = padded.new(node.args[0])
    before, after = shape_of(x), list(node.meta["val"].shape)
    found: dict[int, ValidRows] = {}
    grown = [axis for axis, size in enumerate(after) if not isinstance(size, int)]
    for axis, valid in padded.valid(x).items():
        ahead, behind = prod(before[:axis]), prod(before[axis + 1 :])
        fits = [
            place
            for place, _ in enumerate(after)
            if place in grown
            and all(isinstance(size, int) for size in (*after[:place], *after[place + 1 :]))
            and prod(after[:place]) == ahead
            and prod(after[place + 1 :]) == behind
        ]
        if len(padded.valid(x)) > 1:  # axis by axis, ones left out
            fits = _by_order(before, axis, after)
        if len(fits) != 1 and (
            _in_rows(padded, node, x, axis, after) or _in_groups(padded, node, x, axis, after)
        ):
            return
        if len(fits) != 1:
            raise refused(node, f"it regroups the padded rows of {tuple(before)}")
        found[fits[0]] = valid
    for place in grown:
        if place in found:
            after[place] = shape_of(found[place].mask)[0]
        else:
            known = padded.exact(after[place])
            after[place] = -1 if known is None else known
    if after.count(-1) > 1:
        raise refused(node, "it makes several axes whose sizes depend on the data")
    padded.set(node, padded.edit.call(aten.reshape.default, x, after), found)


def _divided(
    padded: Padded, node: Node, valid: ValidRows, by: int, said: str
) -> tuple[Node, ValidRows]:
    """Divides the count of rows, which has to come out even; ``said`` is where it does not.

    Returns:
        The count, and the rows that are so many.
    """
    each = padded.edit.call(aten.div.Tensor_mode, valid.count, by, rounding_mode="floor")
    padded.set_most(each, shape_of(valid.mask)[0] // by)
    own = padded.of_number(node, each)
    rest = padded.edit.call(aten.remainder.Scalar, valid.count, by)
    even = padded.edit.call(aten.eq.Scalar, rest, 0)
    padded.require(even, "rows", said, source_line(node))
    return each, own


def _in_rows(padded: Padded, node: Node, x: Node, axis: int, after: list[Any]) -> bool:
    """Pads ``numbers.view(B, -1, C)``: where real numbers come first, so do the rows of them.

    Returns:
        Whether it is that form.
    """
    edit, before, valid = padded.edit, shape_of(x), padded.valid(x)[axis]
    grown = [place for place, size in enumerate(after) if not isinstance(size, int)]
    if len(padded.valid(x)) > 1 or len(grown) != 1 or not valid.is_prefix:
        return False
    place, room = grown[0], shape_of(valid.mask)[0]
    ahead, behind = prod(before[:axis]), prod(before[axis + 1 :])
    width, rest = divmod(prod(after[place + 1 :]), behind)
    if prod(after[:place]) != ahead or rest or width < 2:
        return False
    own = padded.memo.get(("rows", valid, width))
    if own is None:
        said = f"the numbers do not fall into rows of {width}"
        _, own = _divided(padded, node, valid, width, said)
    many = room // width
    cut = edit.cut(x, axis, 0, many * width)
    sizes = [many if at == place else size for at, size in enumerate(after)]
    padded.set(node, edit.view(cut, sizes), {place: own})
    return True


def _in_groups(padded: Padded, node: Node, x: Node, axis: int, after: list[Any]) -> bool:
    """Pads ``x[mask].view(B, -1, C)``: each group has the next rows, as many as there are for each.

    Where rows come first, those of group b are b · k … b · k + k - 1, with k the count over B.

    Returns:
        Whether it is that form.
    """
    edit, before, valid = padded.edit, shape_of(x), padded.valid(x)[axis]
    grown = [place for place, size in enumerate(after) if not isinstance(size, int)]
    if len(padded.valid(x)) > 1 or len(grown) != 1 or not grown[0] or not valid.is_prefix:
        return False
    place, groups = grown[0], after[grown[0] - 1]
    ahead, behind = prod(before[:axis]), prod(before[axis + 1 :])
    if prod(after[: place - 1]) != ahead or prod(after[place + 1 :]) != behind or groups < 1:
        return False
    room = shape_of(valid.mask)[0]
    said = f"the rows do not fall into {groups} groups of as many"
    each, own = _divided(padded, node, valid, groups, said)
    first = edit.call(aten.mul.Tensor, edit.view(padded.counted(groups), [groups, 1]), each)
    rows = edit.call(aten.add.Tensor, first, edit.view(padded.counted(room // groups), [1, -1]))
    rows = edit.call(aten.clamp_max.default, edit.view(rows, [groups * (room // groups)]), room - 1)
    taken = edit.call(aten.index_select.default, x, axis, rows)
    sizes = [room // groups if at == place else size for at, size in enumerate(after)]
    padded.set(node, edit.view(taken, sizes), {place: own})
    return True


def _by_order(before: tuple[int, ...], axis: int, after: list[Any]) -> list[int]:
    """Pairs the axes of two shapes that differ by axes of size 1 alone."""
    wide = [a for a, size in enumerate(before) if size != 1]
    places = [a for a, size in enumerate(after) if not isinstance(size, int) or size != 1]
    if len(wide) != len(places) or axis not in wide:
        return []
    for one, other in zip(wide, places, strict=True):
        if isinstance(after[other], int) and after[other] != before[one]:
            return []
    return [places[wide.index(axis)]]


def permute(padded: Padded, node: Node) -> None:
    """Permute, transpose, t: the axes change places."""
    args = padded.new(node.args)
    x = args[0]
    rank = len(shape_of(x))
    if node.target is aten.permute.default:
        order = [normal_axis(dim, rank) for dim in argument(node, "dims")]
    else:
        one, other = (
            (0, 1)
            if node.target is aten.t.default
            else (
                normal_axis(argument(node, "dim0"), rank),
                normal_axis(argument(node, "dim1"), rank),
            )
        )
        order = list(range(rank))
        order[one], order[other] = order[other], order[one]
    found = {order.index(axis): valid for axis, valid in padded.valid(x).items()}
    padded.set(node, padded.edit.call(node.target, *args), found)


def unsqueeze(padded: Padded, node: Node) -> None:
    """A new axis of size 1."""
    args = padded.new(node.args)
    dim = normal_axis(argument(node, "dim"), len(shape_of(args[0])) + 1)
    found = {axis + (axis >= dim): valid for axis, valid in padded.valid(args[0]).items()}
    padded.set(node, padded.edit.call(node.target, *args), found)


def cat(padded: Padded, node: Node) -> None:
    """Joins; along the padded axis the parts' rows follow each other."""
    parts: list[Node] = padded.new(argument(node, "tensors"))
    dim = normal_axis(argument(node, "dim"), len(shape_of(parts[0])))
    parts, found = padded.meet(node, parts, lambda _, axis: None if axis == dim else axis)
    if any(axis not in padded.valid(part) for part in parts for axis in found):
        raise refused(node, "it joins padded rows with rows of a fixed number")
    if any(dim in padded.valid(part) for part in parts):
        rows = [padded.valid(part).get(dim, shape_of(part)[dim]) for part in parts]
        found[dim] = padded.joined(rows)
    padded.set(node, padded.edit.call(node.target, parts, dim), found)


def stack(padded: Padded, node: Node) -> None:
    """Joins along a new axis; the parts must be padded alike."""
    parts: list[Node] = padded.new(argument(node, "tensors"))
    dim = normal_axis(argument(node, "dim"), len(shape_of(parts[0])) + 1)
    parts, rows = padded.meet(node, parts, lambda _, axis: axis)
    if any(axis not in padded.valid(part) for part in parts for axis in rows):
        raise refused(node, "it joins padded rows with rows of a fixed number")
    found = {axis + (axis >= dim): one for axis, one in rows.items()}
    padded.set(node, padded.edit.call(node.target, parts, dim), found)


def gather(padded: Padded, node: Node) -> None:
    """Gather: positions along one axis; the others must be padded alike."""
    x, index = padded.new(node.args[0]), padded.new(argument(node, "index"))
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    if dim in padded.valid(x) and not padded.valid(x)[dim].is_prefix:
        raise refused(node, "it reads positions among rows that are padded inside")
    (x, index), found = padded.meet(node, (x, index), lambda _, a: None if a == dim else a)
    if any(axis not in padded.valid(part) for part in (x, index) for axis in found):
        raise refused(node, "it reads rows that were chosen differently")
    rows = padded.valid(index)
    index = padded.positions(index)
    padded.set(node, padded.edit.call(node.target, x, dim, index), rows)


def index_select(padded: Padded, node: Node) -> None:
    """Takes rows at positions (K,), which may be padded."""
    x, index = padded.new(node.args[0]), padded.new(argument(node, "index"))
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    valid, rows = padded.valid(x), padded.valid(index)
    if dim in valid and not valid[dim].is_prefix:
        raise refused(node, "it reads positions among rows that are padded inside")
    found = {axis: one for axis, one in valid.items() if axis != dim}
    if 0 in rows:
        found[dim] = rows[0]
    index = padded.positions(index)
    padded.set(node, padded.edit.call(node.target, x, dim, index), found)


def embedding(padded: Padded, node: Node) -> None:
    """A row of a table per position."""
    args = padded.new(node.args)
    if padded.valid(args[0]):
        raise refused(node, "its table is padded")
    valid = padded.valid(args[1])
    new = padded.edit.call(node.target, args[0], padded.positions(args[1]), *args[2:])
    padded.set(node, new, valid)


SHAPE_RULES: Final[dict[object, Rule]] = {
    **dict.fromkeys(
        (
            aten.view.default,
            aten.reshape.default,
            aten._unsafe_view.default,
            aten.flatten.using_ints,
            aten.unflatten.int,
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
        ),
        regroup,
    ),
    aten.permute.default: permute,
    aten.transpose.int: permute,
    aten.t.default: permute,
    aten.unsqueeze.default: unsqueeze,
    aten.cat.default: cat,
    aten.stack.default: stack,
    aten.gather.default: gather,
    aten.index_select.default: index_select,
    aten.embedding.default: embedding,
}
