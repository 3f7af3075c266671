"""What calls that repeat, surround or compare rows become when rows are padded."""

from __future__ import annotations

from typing import Final

from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import argument, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.pad.cap_numbers import rows_of
from tokexport.graph_passes.torch_passes.pad.cap_rules import Rule
from tokexport.graph_passes.torch_passes.pad.live_rows import Padded, refused


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
            rows = rows_of(padded, node, size, argument(node, "size")[axis])
            if isinstance(rows, int):
                sizes.append(rows)
            else:
                found[axis] = rows
                sizes.append(shape_of(rows.mask)[0])
            continue
        sizes.append(shape_of(x)[axis - offset])
    padded.set(node, padded.edit.call(aten.expand.default, x, sizes), found)


def repeat(padded: Padded, node: Node) -> None:
    """Repeats rows; along an axis of one row, as often as a number of the data says."""
    x, times = padded.new(node.args[0]), list(argument(node, "repeats"))
    edit, rank = padded.edit, len(times)
    lead = rank - len(shape_of(x))
    found = {axis + lead: live for axis, live in padded.live(x).items()}
    wide = edit.view(x, [*[1] * lead, *shape_of(x)])
    sizes = [*shape_of(wide)]
    for axis, given in enumerate(times):
        if isinstance(given, int):
            if axis in found and given != 1:
                raise refused(node, "it repeats padded rows")
            continue
        if shape_of(wide)[axis] != 1:
            raise refused(node, "it repeats several rows as often as the data says")
        rows = rows_of(padded, node, node.meta["val"].shape[axis], given)
        times[axis] = 1
        if isinstance(rows, int):
            sizes[axis] = rows
        else:
            found[axis], sizes[axis] = rows, shape_of(rows.mask)[0]
    spread = edit.expand(wide, sizes)
    padded.set(node, edit.call(aten.repeat.default, spread, times), found)


def triangle(padded: Padded, node: Node) -> None:
    """Triu and tril, by positions, which are those of the rows where these come first."""
    args = padded.new(node.args)
    if any(not live.front for live in padded.live(args[0]).values()):
        raise refused(node, "it counts rows that are padded inside")
    padded.set(node, padded.edit.call(node.target, *args), padded.live(args[0]))


def distances(padded: Padded, node: Node) -> None:
    """Distances of rows to rows."""
    args = padded.new(node.args)
    (x, y), found = args[:2], {}
    ranks = len(shape_of(x)), len(shape_of(y))
    rank = max(ranks)
    for part, own, place in ((x, ranks[0], rank - 2), (y, ranks[1], rank - 1)):
        for axis, live in padded.live(part).items():
            if axis != own - 2:
                raise refused(node, "it is padded on another axis than the rows")
            found[place] = live
    padded.set(node, padded.edit.call(node.target, *args), found)


def pad(padded: Padded, node: Node) -> None:
    """Rows of one number before and behind; those before and behind padded ones are real."""
    x = padded.new(node.args[0])
    widths, number = argument(node, "pad"), argument(node, "value") or 0
    if node.target is aten.pad.default and argument(node, "mode") != "constant":
        raise refused(node, "it repeats rows")
    if not all(isinstance(width, int) for width in widths):
        raise refused(node, "it adds as many rows as the data says")
    live = padded.live(x)
    for pair, axis in enumerate(range(len(shape_of(x)) - 1, -1, -1)):
        before, behind = (*widths[2 * pair : 2 * pair + 2], 0, 0)[:2]
        if axis not in live:
            new = padded.edit.call(
                aten.constant_pad_nd.default,
                x,
                [*[0, 0] * pair, before, behind],
                number,
            )
            x = new if before or behind else x
            continue
        if min(before, behind) < 0:
            raise refused(node, "it cuts padded rows")
        rows = [each for each in (before, live[axis], behind) if each != 0]
        sizes = [
            [each if a == axis else size for a, size in enumerate(shape_of(x))]
            for each in (before, behind)
        ]
        dtype = node.meta["val"].dtype
        filling = [padded.constant(size, number, dtype) for size in sizes]
        parts = [filling[0]] * (before > 0) + [x] + [filling[1]] * (behind > 0)
        if len(parts) > 1:
            x = padded.edit.call(aten.cat.default, parts, axis)
            live = {**live, axis: padded.joined(rows)}
    padded.set(node, x, live)


SPREAD_RULES: Final[dict[object, Rule]] = {
    aten.expand.default: expand,
    aten.repeat.default: repeat,
    aten.pad.default: pad,
    aten.constant_pad_nd.default: pad,
    aten.triu.default: triangle,
    aten.tril.default: triangle,
    aten.cdist.default: distances,
}
