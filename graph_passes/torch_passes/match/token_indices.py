"""Reads index tensors that choose rows of tokens, and lays tensors out to move rows.

========================================  ==============================================
``x[arange(B)[:, None], rows]``            rows (B, K) of x (B, N, …)
``x[arange(B)[…], arange(H)[…], rows]``    rows (B, H, K) of x (B, H, N, …)
``x[arange(B), row]``                      row (B,): one of each image
``x.flatten(0, 1)[flat]``                  rows (B, K) of x: flat is rows + N * arange(B)[:, None]
========================================  ==============================================

Rows that might point into another image are not read so. An index that varies along the axes V and
moves rows along axis d splits the axes of x into batch axes (V without d, and axis 0), the axis d,
and channel axes (the rest)::

    x  (b0, d, c0, c1)  →  permute to (batch…, d, channels…)  →  reshape (B, N, C)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    constant_of,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.match.broadcast import collapse, kept_axes, varying_axes
from tokexport.graph_passes.torch_passes.match.constant_values import ConstantValues
from tokexport.graph_passes.torch_passes.match.integer_bounds import (
    ARANGES,
    arange_bounds,
    bounds_of,
    is_never_negative,
)


def counts_along(node: Node, axis: int) -> bool:
    """Returns whether a value is its own position along an axis, whatever it was spread over."""
    size = shape_of(node)[axis]
    place: int | None = axis
    while place is not None:
        if is_call(node, *ARANGES):
            return arange_bounds(node) == (0, size, 1) and shape_of(node) == (size,)
        constant = constant_of(node)
        if constant is not None and shape_of(node) == (size,):
            return torch.equal(constant, torch.arange(size, dtype=constant.dtype))
        kept = kept_axes(node)
        if kept is None:
            return False
        place, node = kept.get(place), operand(node)
        if place is not None and shape_of(node)[place] != size:
            return False
    return False


def counted_from_start(edit: Editor, index: Node, size: int) -> Node:
    """Turns positions counted from the end (-1 the last) into positions from the start."""
    if is_never_negative(index):
        return index
    return edit.call(aten.remainder.Scalar, index, size)


def is_index_tensor(node: object) -> bool:
    """Returns whether a value is a tensor of positions, and not a mask."""
    return isinstance(node, Node) and is_tensor(node) and dtype_of(node) == torch.int64


@dataclass(frozen=True)
class RowLayout:
    """How the axes of a tensor become (B, N, C).

    Attributes:
        batch: Axes that are one batch axis together.
        rows: The axis along which rows move.
        channels: Axes that are one row together.
    """

    batch: tuple[int, ...]
    rows: int
    channels: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """The permutation that brings batch, rows and channels next to each other."""
        return (*self.batch, self.rows, *self.channels)

    def flatten(self, edit: Editor, node: Node) -> Node:
        """Inserts what makes a tensor of this layout (B, N, C)."""
        shape = shape_of(node)
        flat = (
            prod(shape[a] for a in self.batch),
            shape[self.rows],
            prod(shape[a] for a in self.channels),
        )
        return edit.view(edit.permute(node, self.order), flat)

    def restore(self, edit: Editor, node: Node, shape: tuple[int, ...]) -> Node:
        """Inserts what makes (B, N, C) a tensor of ``shape`` again."""
        moved = edit.view(node, [shape[a] for a in self.order])
        back = [self.order.index(a) for a in range(len(shape))]
        return edit.permute(moved, back)

    def rows_of(self, edit: Editor, index: Node) -> Node:
        """Reads the index, which does not vary along the channels, as (B, K)."""
        return self.flatten_index(edit, collapse(edit, index, (*self.batch, self.rows)))

    @staticmethod
    def flatten_index(edit: Editor, rows: Node) -> Node:
        """Inserts what makes rows (batch…, K) two axes, (B, K)."""
        *batch, count = shape_of(rows)
        return edit.view(rows, (prod(batch), count))


def layout_of_index(index: Node, axis: int) -> RowLayout:
    """Chooses batch and channel axes for an index of the rank of its data.

    Axis 0 is the batch unless rows move along it, so that (B, N, C) stays what it is.
    """
    rank = len(shape_of(index))
    varies = varying_axes(index) | ({0} if axis != 0 else set())
    batch = tuple(a for a in range(rank) if a in varies and a != axis)
    channels = tuple(a for a in range(rank) if a not in varies and a != axis)
    return RowLayout(batch, axis, channels)


def narrowed(edit: Editor, node: Node, sizes: tuple[int, ...], axis: int) -> Node:
    """Cuts a tensor to ``sizes`` along every axis but ``axis``."""
    for a, size in enumerate(sizes):
        if a != axis:
            node = edit.cut(node, a, 0, size)
    return node


@dataclass(frozen=True)
class BatchedIndex:
    """An advanced index that says which rows of each image.

    Attributes:
        rows: The last index, as the code wrote it: it may count from the end.
        sizes: The sizes of the batch axes, then the number of rows.
        layout: The batch axes, the axis of the rows, and the channels of the data.
        tokens: The number of rows there are to index.
        single: Whether there is one row of each image and the result has no axis for it.
    """

    rows: Node
    sizes: tuple[int, ...]
    layout: RowLayout
    tokens: int
    single: bool

    def rows_from_start(self, edit: Editor) -> Node:
        """Inserts the rows as (B, K), counted from the start."""
        rows = counted_from_start(edit, self.rows, self.tokens)
        if self.single:
            rows = edit.call(aten.unsqueeze.default, rows, -1)
        rows = edit.expand(rows, self.sizes)
        return self.layout.flatten_index(edit, rows)


def read_batched_index(node: Node) -> BatchedIndex | None:
    """Returns the rows of an ``index`` or ``index_put``; None for other indices."""
    data = shape_of(operand(node))
    indices = list(argument(node, "indices"))
    while indices and indices[-1] is None:
        indices.pop()
    if len(indices) < 2 or not all(is_index_tensor(index) for index in indices):
        return None
    *counters, rows = indices
    at = len(counters)
    sizes = tuple(torch.broadcast_shapes(*(shape_of(index) for index in indices)))
    single = len(sizes) == at
    if len(sizes) not in (at, at + 1) or sizes[:at] != data[:at]:
        return None
    for place, counter in enumerate(counters):
        own = place - (len(sizes) - len(shape_of(counter)))
        if own < 0 or shape_of(counter)[own] != sizes[place] or not counts_along(counter, own):
            return None
    layout = RowLayout(tuple(range(at)), at, tuple(range(at + 1, len(data))))
    return BatchedIndex(rows, (*sizes, 1) if single else sizes, layout, data[at], single)


@dataclass(frozen=True)
class FlatRows:
    """Positions in tokens laid end to end.

    Attributes:
        rows: Which rows of each image, (B, K) or spread to it.
        sizes: (B, K).
        tokens: N, the tokens of an image.
    """

    rows: Node
    sizes: tuple[int, int]
    tokens: int

    def spread(self, edit: Editor) -> Node:
        """Inserts the rows as (B, K)."""
        return edit.expand(self.rows, self.sizes)


def read_flat_rows(index: Node, total: int, constants: ConstantValues) -> FlatRows | None:
    """Returns the rows of positions in ``total`` tokens of all images; None for others."""
    if is_call(index, aten.reshape.default):
        index = operand(index)
    if not is_call(index, aten.add.Tensor) or argument(index, "alpha") != 1:
        return None
    sizes = shape_of(index)
    if len(sizes) != 2 or 0 in sizes or total % sizes[0]:
        return None
    batch, tokens = sizes[0], total // sizes[0]
    first = torch.arange(batch)[:, None] * tokens
    for rows, offsets in (index.args[:2], index.args[1::-1]):
        known = constants.of(offsets)
        if known is None or not isinstance(rows, Node):
            continue
        starts = torch.equal(known.expand(sizes), first.expand(sizes))
        bounds = bounds_of(rows)
        if starts and bounds is not None and bounds[0] >= 0 and bounds[1] < tokens:
            return FlatRows(rows, (batch, sizes[1]), tokens)
    return None


def read_flat_index(node: Node, constants: ConstantValues) -> tuple[Node, FlatRows] | None:
    """Returns the tokens (B, N, …) and their rows that an ``index`` along axis 0 takes, or None."""
    index, flat = _only_index(node), operand(node)
    if index is None or not is_index_tensor(index) or not is_call(flat, aten.reshape.default):
        return None
    data = operand(flat)
    if len(shape_of(data)) < 2:
        return None
    batch, tokens, *rest = shape_of(data)
    if shape_of(flat) != (batch * tokens, *rest):
        return None
    found = read_flat_rows(index, batch * tokens, constants)
    return (data, found) if found is not None and found.tokens == tokens else None


def _only_index(node: Node) -> Node | None:
    """Returns the index along axis 0, where there is no other."""
    if is_call(node, aten.index_select.default):
        return operand(node, "index") if axis(node) == 0 else None
    first, *others = argument(node, "indices")
    alone = all(other is None for other in others)
    return first if alone and isinstance(first, Node) else None
