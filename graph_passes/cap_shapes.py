"""What calls that move axes, cut and join become when rows are padded."""

from __future__ import annotations

from math import prod
from typing import Any, Final

from torch.fx import Node

from tokexport.graph_passes.cap_rules import Rule
from tokexport.graph_passes.live_rows import Live, Padded, refused
from tokexport.graph_passes.torch_passes.calls import argument, normal_axis, shape_of
from tokexport.graph_passes.torch_passes.editor import aten


def regroup(padded: Padded, node: Node) -> None:
    """View, reshape, flatten, squeeze: a padded axis must stay an axis of its own."""
    x = padded.new(node.args[0])
    before, after = shape_of(x), list(node.meta["val"].shape)
    found: dict[int, Live] = {}
    grown = [axis for axis, size in enumerate(after) if not isinstance(size, int)]
    for axis, live in padded.live(x).items():
        ahead, behind = prod(before[:axis]), prod(before[axis + 1 :])
        fits = [
            place
            for place, _ in enumerate(after)
            if place in grown
            and all(isinstance(size, int) for size in (*after[:place], *after[place + 1 :]))
            and prod(after[:place]) == ahead
            and prod(after[place + 1 :]) == behind
        ]
        if len(padded.live(x)) > 1:  # axis by axis, ones left out
            fits = _by_order(before, axis, after)
        if len(fits) != 1:
            raise refused(node, f"it regroups the padded rows of {tuple(before)}")
        found[fits[0]] = live
    for place in grown:
        if place in found:
            after[place] = shape_of(found[place].mask)[0]
        else:
            known = padded.exact(after[place])
            after[place] = -1 if known is None else known
    if after.count(-1) > 1:
        raise refused(node, "it makes several axes whose sizes depend on the data")
    padded.set(node, padded.edit.call(aten.reshape.default, x, after), found)


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


def expand(padded: Padded, node: Node) -> None:
    """Spreads over new axes; padded ones stay."""
    x = padded.new(node.args[0])
    after = node.meta["val"].shape
    offset = len(after) - len(shape_of(x))
    found = {axis + offset: live for axis, live in padded.live(x).items()}
    sizes: list[int] = []
    for axis, size in enumerate(after):
        if isinstance(size, int):
            sizes.append(size)
            continue
        if axis not in found and (axis < offset or shape_of(x)[axis - offset] == 1):
            live = padded.of_size(size)
            if live is not None:
                found[axis] = live
                sizes.append(shape_of(live.mask)[0])
                continue
            if padded.exact(size) is None:
                raise refused(node, "it repeats a row as often as the data says")
            sizes.append(padded.exact(size) or 0)
            continue
        sizes.append(shape_of(x)[axis - offset])
    padded.set(node, padded.edit.call(aten.expand.default, x, sizes), found)


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
    found = {order.index(axis): live for axis, live in padded.live(x).items()}
    padded.set(node, padded.edit.call(node.target, *args), found)


def unsqueeze(padded: Padded, node: Node) -> None:
    """A new axis of size 1."""
    args = padded.new(node.args)
    dim = normal_axis(argument(node, "dim"), len(shape_of(args[0])) + 1)
    found = {axis + (axis >= dim): live for axis, live in padded.live(args[0]).items()}
    padded.set(node, padded.edit.call(node.target, *args), found)


def select(padded: Padded, node: Node) -> None:
    """One row; of a padded axis, one that is always there, or the first few."""
    x, given = padded.new(node.args[0]), argument(node, "index")
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    live = padded.live(x)
    found = {axis - (axis > dim): one for axis, one in live.items() if axis != dim}
    position = padded.new(given)
    if isinstance(position, Node):  # read from a tensor
        if dim in live and not live[dim].front:
            raise refused(node, "it reads a position among rows that are padded inside")
        rows = padded.edit.call(aten.reshape.default, position, [1])
        row = padded.edit.call(aten.index_select.default, x, dim, rows)
        padded.set(node, padded.edit.call(aten.squeeze.dim, row, dim), found)
        return
    if dim in live and (position < 0 or (position >= live[dim].sure and not live[dim].front)):
        raise refused(node, "it reads a row that may be padding")
    padded.set(node, padded.edit.call(node.target, x, dim, position), found)


def slice_(padded: Padded, node: Node) -> None:
    """Cuts an axis; a padded one only behind its first rows, or among those always there."""
    x = padded.new(node.args[0])
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    live = padded.live(x)
    after = node.meta["val"].shape[dim]
    start, end, step = (argument(node, name) for name in ("start", "end", "step"))
    start = 0 if start is None else start
    if dim not in live:
        start, end = padded.new(start), padded.new(end)
        if isinstance(start, Node) or isinstance(end, Node):
            raise refused(node, "where it cuts depends on the values of the input")
        new = padded.edit.call(aten.slice.Tensor, x, dim, start, end, step)
        padded.set(node, new, live)
        return
    size = shape_of(x)[dim]
    if not isinstance(start, int) or start < 0 or step != 1:
        raise refused(node, "it cuts padded rows other than behind the first few")
    if isinstance(after, int):  # a fixed number of rows that are always there
        if start + after > live[dim].sure and not live[dim].front:
            raise refused(node, "it takes a fixed number of rows, and some may be padding")
        new = padded.edit.call(aten.slice.Tensor, x, dim, start, start + after)
        padded.set(node, new, {a: one for a, one in live.items() if a != dim})
        return
    whole = node.args[0].meta["val"].shape[dim].node.expr - start  # type: ignore[union-attr]
    if after.node.expr != whole or (start > live[dim].sure and not live[dim].front):
        raise refused(node, "it cuts padded rows other than behind the first few")
    new = padded.edit.call(aten.slice.Tensor, x, dim, start, size) if start else x
    padded.set(node, new, {**live, dim: padded.cut(live[dim], start) if start else live[dim]})


def cat(padded: Padded, node: Node) -> None:
    """Joins; along the padded axis the parts' rows follow each other."""
    parts: list[Node] = padded.new(argument(node, "tensors"))
    dim = normal_axis(argument(node, "dim"), len(shape_of(parts[0])))
    found: dict[int, Live] = {}
    for part in parts:
        for axis, live in padded.live(part).items():
            if axis != dim and found.setdefault(axis, live) is not live:
                raise refused(node, "it joins rows that were chosen differently")
    if any(axis not in padded.live(part) for part in parts for axis in found):
        raise refused(node, "it joins padded rows with rows of a fixed number")
    if any(dim in padded.live(part) for part in parts):
        rows = [padded.live(part).get(dim, shape_of(part)[dim]) for part in parts]
        found[dim] = padded.joined(rows)
    padded.set(node, padded.edit.call(node.target, parts, dim), found)


def stack(padded: Padded, node: Node) -> None:
    """Joins along a new axis; the parts must be padded alike."""
    parts: list[Node] = padded.new(argument(node, "tensors"))
    dim = normal_axis(argument(node, "dim"), len(shape_of(parts[0])) + 1)
    if any(padded.live(part) != padded.live(parts[0]) for part in parts):
        raise refused(node, "it joins rows that were chosen differently")
    found = {axis + (axis >= dim): one for axis, one in padded.live(parts[0]).items()}
    padded.set(node, padded.edit.call(node.target, parts, dim), found)


def split(padded: Padded, node: Node) -> None:
    """Unbind, split and chunk along an axis that is not padded."""
    args = padded.new(node.args)
    dim = normal_axis(argument(node, "dim"), len(shape_of(args[0])))
    live = padded.live(args[0])
    if dim in live:
        raise refused(node, "it splits the padded rows")
    gone = node.target is aten.unbind.int
    found = {axis - (gone and axis > dim): one for axis, one in live.items()}
    padded.set(node, padded.edit.call(node.target, *args), found)


def gather(padded: Padded, node: Node) -> None:
    """Gather: positions along one axis; the others must be padded alike."""
    x, index = padded.new(node.args[0]), padded.new(argument(node, "index"))
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    live, rows = padded.live(x), padded.live(index)
    if dim in live and not live[dim].front:
        raise refused(node, "it reads positions among rows that are padded inside")
    for axis in {*live, *rows} - {dim}:
        if live.get(axis) is not rows.get(axis):
            raise refused(node, "it reads rows that were chosen differently")
    index = padded.positions(index)
    padded.set(node, padded.edit.call(node.target, x, dim, index), rows)


def index_select(padded: Padded, node: Node) -> None:
    """Takes rows at positions (K,), which may be padded."""
    x, index = padded.new(node.args[0]), padded.new(argument(node, "index"))
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    live, rows = padded.live(x), padded.live(index)
    if dim in live and not live[dim].front:
        raise refused(node, "it reads positions among rows that are padded inside")
    found = {axis: one for axis, one in live.items() if axis != dim}
    if 0 in rows:
        found[dim] = rows[0]
    index = padded.positions(index)
    padded.set(node, padded.edit.call(node.target, x, dim, index), found)


def embedding(padded: Padded, node: Node) -> None:
    """A row of a table per position."""
    args = padded.new(node.args)
    if padded.live(args[0]):
        raise refused(node, "its table is padded")
    live = padded.live(args[1])
    new = padded.edit.call(node.target, args[0], padded.positions(args[1]), *args[2:])
    padded.set(node, new, live)


def create(padded: Padded, node: Node) -> None:
    """Makes values of a size that depends on the data."""
    sizes: list[int] = []
    found: dict[int, Live] = {}
    for axis, size in enumerate(node.meta["val"].shape):
        live = None if isinstance(size, int) else padded.of_size(size)
        exact = size if isinstance(size, int) else padded.exact(size)
        if live is None and exact is None:
            raise refused(node, "which rows it makes is not known")
        if live is not None:
            found[axis] = live
            exact = shape_of(live.mask)[0]
        sizes.append(int(exact or 0))
    kwargs = padded.named(node)
    if node.target is aten.arange.default:
        if any(not live.front for live in found.values()):
            raise refused(node, "it counts rows that are padded inside")
        new = padded.edit.call(node.target, sizes[0], **kwargs)
    else:
        new = padded.edit.call(node.target, sizes, *padded.new(node.args[1:]), **kwargs)
    padded.set(node, new, found)


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
    aten.expand.default: expand,
    aten.permute.default: permute,
    aten.transpose.int: permute,
    aten.t.default: permute,
    aten.unsqueeze.default: unsqueeze,
    aten.select.int: select,
    aten.slice.Tensor: slice_,
    aten.cat.default: cat,
    aten.stack.default: stack,
    aten.unbind.int: split,
    aten.split.Tensor: split,
    aten.split_with_sizes.default: split,
    aten.chunk.default: split,
    aten.gather.default: gather,
    aten.index_select.default: index_select,
    aten.embedding.default: embedding,
    aten.full.default: create,
    aten.zeros.default: create,
    aten.ones.default: create,
    aten.empty.memory_format: create,
    aten.arange.default: create,
}
