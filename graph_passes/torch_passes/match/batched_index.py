"""Reads x[batch, rows]: an advanced index whose leading indices only count the batch.

========================================  ==============================================
``x[arange(B)[:, None], rows]``            rows (B, K) of x (B, N, …)
``x[arange(B)[…], arange(H)[…], rows]``    rows (B, H, K) of x (B, H, N, …)
``x[arange(B), row]``                      row (B,): one of each image
========================================  ==============================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import argument, operand, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.match.row_layout import RowLayout
from tokexport.graph_passes.torch_passes.match.token_indices import (
    counted_from_start,
    counts_along,
    is_index_tensor,
)


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
    """Returns what an ``index`` or ``index_put`` says, or None where it says anything else."""
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
    for axis, counter in enumerate(counters):
        own = axis - (len(sizes) - len(shape_of(counter)))
        if own < 0 or shape_of(counter)[own] != sizes[axis] or not counts_along(counter, own):
            return None
    layout = RowLayout(tuple(range(at)), at, tuple(range(at + 1, len(data))))
    return BatchedIndex(rows, (*sizes, 1) if single else sizes, layout, data[at], single)
