"""Gives rules for deviations, quantiles, counts and pools on padded rows.

Before → after::

    var(y, 1)                  sum(where(valid, (y' - mean)², 0), 1) / max(sum(valid) - c, 0)
    quantile(y, q, 1)          p = q · (sum(valid) - 1); between the rows ⌊p⌋ and ⌈p⌉ of sorted y'
    bincount(ids, minlength)   counts of ids' == k where valid; k < max(max(ids) + 1, minlength)
    adaptive_avg_pool1d(y, 1)  mean(y', -1)

Formulas as PyTorch documents them: a variance divides by the rows less the correction c, and
a quantile between two rows is interpolated. Calls that repeat, surround or compare rows come
behind.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    normal_axis,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.pad.numbers_of_rows import rows_of
from tokexport.graph_passes.torch_passes.pad.op_rules import Rule, how_many, mean_of_rows
from tokexport.graph_passes.torch_passes.pad.padded_rows import Padded, refused


def deviation(padded: Padded, node: Node) -> None:
    """Standard deviations and variances over axes of any number, with their means or without."""
    target: Any = node.target
    names = {formal.name for formal in target._schema.arguments}
    x: Node = padded.new(node.args[0])
    rank, valid, edit = len(shape_of(x)), padded.valid(x), padded.edit
    given = argument(node, "dim") if "dim" in names else None
    given = [given] if isinstance(given, int) else given
    dims = sorted({normal_axis(dim, rank) for dim in given}) if given else list(range(rank))
    keeps = bool(argument(node, "keepdim")) if "keepdim" in names else False
    if "correction" in names:
        correction = argument(node, "correction")
    else:
        correction = argument(node, "unbiased")
    correction = 1.0 if correction is None else float(correction)
    mixed = [valid[axis] for axis in dims if axis in valid]
    kept = {axis: one for axis, one in valid.items() if axis not in dims}
    after = (
        kept
        if keeps
        else {axis - sum(dim < axis for dim in dims): one for axis, one in kept.items()}
    )
    if not mixed:  # row by row
        new = edit.call(target, x, *padded.new(node.args[1:]), **padded.named(node))
        padded.set(node, new, after)
        return
    filled = x
    for axis in dims:
        filled = padded.filled(filled, axis, 0.0)
    mean = mean_of_rows(padded, filled, dims, True, mixed, dtype_of(x))
    apart = edit.call(aten.sub.Tensor, filled, mean)
    padded.note(apart, valid)
    for axis in dims:
        apart = padded.filled(apart, axis, 0.0)
    squares = edit.call(aten.mul.Tensor, apart, apart)
    total = edit.call(aten.sum.dim_IntList, squares, dims, keeps)
    rows = how_many(padded, x, dims, mixed, dtype_of(x))
    rows = edit.call(aten.clamp_min.default, edit.call(aten.sub.Tensor, rows, correction), 0.0)
    spread = edit.call(aten.div.Tensor, total, rows)
    if "std" in target._schema.name:
        spread = edit.call(aten.sqrt.default, spread)
    if "_mean" not in target._schema.name:
        padded.set(node, spread, after)
        return
    flat = mean if keeps else edit.call(aten.squeeze.dims, mean, dims)
    for part in (spread, flat):
        padded.note(part, after)
    padded.set(node, [spread, flat])


def quantile(padded: Padded, node: Node) -> None:
    """Quantiles along one padded axis, between the two nearest rows."""
    x, given = padded.new(node.args[0]), padded.new(argument(node, "q"))
    rank, valid, edit = len(shape_of(x)), padded.valid(x), padded.edit
    given_dim = argument(node, "dim")
    if given_dim is None and rank != 1:
        raise refused(node, "it flattens rows that are padded")
    dim = normal_axis(given_dim, rank) if given_dim is not None else 0
    if dim not in valid or len(valid) > 1 or padded.valid(given):
        raise refused(node, "it is padded on another axis than it runs along")
    if argument(node, "interpolation") != "linear":
        raise refused(node, "it takes one of the rows, or their middle")
    front, dtype = valid[dim], dtype_of(x)
    scalar = not isinstance(given, Node) or not shape_of(given)
    if isinstance(given, Node):
        q = edit.view(given, [-1]) if scalar else given
    else:
        q = padded.constant((1,), float(given), dtype)
    keeps = bool(argument(node, "keepdim"))
    last = edit.permute(x, [*(a for a in range(rank) if a != dim), dim])
    padded.note(last, {rank - 1: front})
    ordered = edit.item(
        edit.call(aten.sort.default, padded.filled(last, rank - 1, torch.inf), rank - 1), 0
    )
    above = edit.call(aten._to_copy.default, front.count, dtype=dtype)
    above = edit.call(aten.clamp_min.default, edit.call(aten.sub.Tensor, above, 1.0), 0.0)
    place = edit.call(aten.mul.Tensor, q, above)
    low = edit.call(aten.floor.default, place)
    weight = edit.call(aten.sub.Tensor, place, low)
    ends = [
        edit.call(
            aten.index_select.default,
            ordered,
            rank - 1,
            edit.call(aten._to_copy.default, edge, dtype=torch.int64),
        )
        for edge in (low, edit.call(aten.ceil.default, place))
    ]
    step = edit.call(aten.mul.Tensor, edit.call(aten.sub.Tensor, ends[1], ends[0]), weight)
    found = edit.call(aten.add.Tensor, ends[0], step)
    axes = [*range(rank - 1)]
    found = edit.permute(found, [rank - 1, *axes])
    if keeps:
        found = edit.call(aten.unsqueeze.default, found, dim + 1)
    if scalar:
        found = edit.call(aten.squeeze.dim, found, 0)
    padded.set(node, found, {})


def bincount(padded: Padded, node: Node) -> None:
    """How often each whole number from 0 on occurs, or the sums of their weights."""
    x, weights = padded.new(node.args[0]), padded.new(argument(node, "weights"))
    least, edit = argument(node, "minlength") or 0, padded.edit
    valid, size = padded.valid(x).get(0), shape_of(x)[0]
    if isinstance(weights, Node):
        (x, weights), _ = padded.meet(node, (x, weights), lambda _, axis: axis)
        valid, size = padded.valid(x).get(0), shape_of(x)[0]
        if padded.valid(weights).get(0) is not valid:
            raise refused(node, "its weights and its numbers were chosen differently")
    most = edit.call(aten.amax.default, padded.filled(x, 0, -1), [0])
    length = edit.call(aten._to_copy.default, most, dtype=torch.int64)
    length = edit.call(aten.clamp_min.default, edit.call(aten.add.Tensor, length, 1), least)
    rows = padded.of_number(node, length)
    room = shape_of(rows.mask)[0]
    places = edit.view(padded.counted(room), [room, 1])
    same = edit.call(aten.eq.Tensor, places, edit.view(x, [1, size]))
    if valid is not None:
        same = edit.call(aten.logical_and.default, same, edit.view(valid.mask, [1, size]))
    if isinstance(weights, Node):
        zero = padded.constant((), 0, dtype_of(weights))
        same = edit.call(aten.where.self, same, edit.view(weights, [1, size]), zero)
    found = edit.call(aten.sum.dim_IntList, same, [1])
    if dtype_of(found) != node.meta["val"].dtype:
        found = edit.call(aten._to_copy.default, found, dtype=node.meta["val"].dtype)
    padded.set(node, found, {0: rows})


def pool(padded: Padded, node: Node) -> None:
    """Adaptive pools of all rows to one; others cut rows where padding would move the cuts."""
    x = padded.new(node.args[0])
    rank, valid, edit = len(shape_of(x)), padded.valid(x), padded.edit
    given = argument(node, "output_size")
    sizes = [given] if isinstance(given, int) else list(given)
    axes = [*range(rank - len(sizes), rank)]
    if any(size != 1 for size in sizes):
        raise refused(node, "it pools padded rows to more than one")
    mixed = [valid[axis] for axis in axes if axis in valid]
    target: Any = node.target
    if "max" in target._schema.name:
        if any(user.args[1] == 1 and user.users for user in node.users):
            raise refused(node, "its positions are read")
        for axis in axes:
            x = padded.filled(x, axis, -torch.inf)
        new = edit.call(aten.amax.default, x, axes, True)
        padded.note(new, {a: one for a, one in valid.items() if a not in axes})
        padded.set(node, [new, None])
        return
    if mixed:
        for axis in axes:
            x = padded.filled(x, axis, 0.0)
        new = mean_of_rows(padded, x, axes, True, mixed, dtype_of(x))
    else:
        new = edit.call(aten.mean.dim, x, axes, True)
    padded.set(node, new, {a: one for a, one in valid.items() if a not in axes})


STATISTICS_RULES: Final[dict[object, Rule]] = {
    **dict.fromkeys(
        (
            *(aten.std.default, aten.std.dim, aten.std.correction),
            *(aten.var.default, aten.var.dim, aten.var.correction),
            *(aten.std_mean.default, aten.std_mean.dim, aten.std_mean.correction),
            *(aten.var_mean.default, aten.var_mean.dim, aten.var_mean.correction),
        ),
        deviation,
    ),
    aten.quantile.default: quantile,
    aten.quantile.scalar: quantile,
    aten.bincount.default: bincount,
    aten.adaptive_avg_pool1d.default: pool,
    aten.adaptive_max_pool1d.default: pool,
}


def expand(padded: Padded, node: Node) -> None:
    """Spreads over new axes; padded ones stay."""
    x = padded.new(node.args[0])
    after = node.meta["val"].shape
    offset = len(after) - len(shape_of(x))
    found = {axis + offset: valid for axis, valid in padded.valid(x).items()}
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
    found = {axis + lead: valid for axis, valid in padded.valid(x).items()}
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
    if any(not valid.is_prefix for valid in padded.valid(args[0]).values()):
        raise refused(node, "it counts rows that are padded inside")
    padded.set(node, padded.edit.call(node.target, *args), padded.valid(args[0]))


def distances(padded: Padded, node: Node) -> None:
    """Distances of rows to rows."""
    args = padded.new(node.args)
    (x, y), found = args[:2], {}
    ranks = len(shape_of(x)), len(shape_of(y))
    rank = max(ranks)
    for part, own, place in ((x, ranks[0], rank - 2), (y, ranks[1], rank - 1)):
        for axis, valid in padded.valid(part).items():
            if axis != own - 2:
                raise refused(node, "it is padded on another axis than the rows")
            found[place] = valid
    padded.set(node, padded.edit.call(node.target, *args), found)


def pad(padded: Padded, node: Node) -> None:
    """Rows of one number before and behind; those before and behind padded ones are real."""
    x = padded.new(node.args[0])
    widths, number = argument(node, "pad"), argument(node, "value") or 0
    if node.target is aten.pad.default and argument(node, "mode") != "constant":
        raise refused(node, "it repeats rows")
    if not all(isinstance(width, int) for width in widths):
        raise refused(node, "it adds as many rows as the data says")
    valid = padded.valid(x)
    for pair, axis in enumerate(range(len(shape_of(x)) - 1, -1, -1)):
        before, behind = (*widths[2 * pair : 2 * pair + 2], 0, 0)[:2]
        if axis not in valid:
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
        rows = [each for each in (before, valid[axis], behind) if each != 0]
        sizes = [
            [each if a == axis else size for a, size in enumerate(shape_of(x))]
            for each in (before, behind)
        ]
        dtype = node.meta["val"].dtype
        filling = [padded.constant(size, number, dtype) for size in sizes]
        parts = [filling[0]] * (before > 0) + [x] + [filling[1]] * (behind > 0)
        if len(parts) > 1:
            x = padded.edit.call(aten.cat.default, parts, axis)
            valid = {**valid, axis: padded.joined(rows)}
    padded.set(node, x, valid)


SPREAD_RULES: Final[dict[object, Rule]] = {
    aten.expand.default: expand,
    aten.repeat.default: repeat,
    aten.pad.default: pad,
    aten.constant_pad_nd.default: pad,
    aten.triu.default: triangle,
    aten.tril.default: triangle,
    aten.cdist.default: distances,
}
