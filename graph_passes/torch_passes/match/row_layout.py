"""Lays a tensor of any rank out as (B, N, C) for an operation on rows along one axis, and back.

An index that varies along the axes V and moves rows along axis d splits the axes of x into batch
axes (V without d, and axis 0), the axis d, and channel axes (the rest)::

    x  (b0, d, c0, c1)  →  permute to (batch…, d, channels…)  →  reshape (B, N, C)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import shape_of
from tokexport.graph_passes.torch_passes.graph.editor import Editor
from tokexport.graph_passes.torch_passes.match.broadcast import collapse, varying_axes


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
