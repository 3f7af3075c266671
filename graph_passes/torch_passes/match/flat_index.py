"""Reads an index into the tokens of all images laid end to end.

    x (B, N, …).flatten(0, 1)[(rows + N * arange(B)[:, None]).flatten()]      rows (B, K) of x

the way many published helpers select tokens of a batch, and scatter into them. Rows that might
point into another image are not read so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    is_call,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.match.constant_values import ConstantValues
from tokexport.graph_passes.torch_passes.match.integer_bounds import bounds_of
from tokexport.graph_passes.torch_passes.match.token_indices import is_index_tensor


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
    """Returns what positions in ``total`` tokens of all images say, or None otherwise."""
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
