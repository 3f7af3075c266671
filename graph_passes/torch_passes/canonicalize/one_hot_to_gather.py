"""Recognises a product with a one-hot matrix as a gather or a scatter of rows.

Before → after, with H[b, k, n] = (index[b, k] == n)::

    H @ x                       →  gather_tokens(x, index)
    Hᵀ @ src                    →  scatter_tokens(0, index, src, "sum")
    b + scatter_tokens(0, …)    →  scatter_tokens(b, …)

whether H was made by ``one_hot`` or by comparing with an arange. An index that may lie outside
0 … N - 1, whose row of H is empty, is no gather; a scatter leaves it out, so both stay then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.match.broadcast import collapse, varying_axes
from tokexport.graph_passes.torch_passes.match.integer_bounds import bounds_of
from tokexport.graph_passes.torch_passes.match.token_indices import counts_along, is_index_tensor


@dataclass(frozen=True)
class OneHot:
    """A one-hot matrix (B, R, S).

    Attributes:
        index: The value whose positions it marks: (B, K), or spread to three axes.
        along: The axis of the index, of three, that holds the K positions; None where it has two.
        counts: The axis, 1 or 2, along which the matrix counts positions.
    """

    index: Node
    along: int | None
    counts: int


class OneHotToGather(TorchPass):
    """Finds products with one-hot matrices."""

    name: ClassVar[str] = "one-hot to gather"
    comes_before: ClassVar[tuple[str, ...]] = ("recognise merges",)

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many products it changed."""
        changed = 0
        for node in list(edit.graph.nodes):
            if not is_call(node, aten.matmul.default):
                continue
            with edit.before(node):
                new = _rows(edit, node)
            if new is not None:
                edit.replace(node, new)
                _fold_into_sum(edit, new)
                changed += 1
        return changed


def _rows(edit: Editor, node: Node) -> Node | None:
    matrix, x = operand(node), operand(node, "other")
    if len(shape_of(matrix)) != 3 or len(shape_of(x)) != 3 or shape_of(matrix)[0] != shape_of(x)[0]:
        return None
    found = _read(matrix)
    if found is None:
        return None
    bounds, positions = bounds_of(found.index), shape_of(matrix)[found.counts]
    if bounds is None or bounds[0] < 0 or bounds[1] >= positions:
        return None
    index = found.index
    if found.along is not None:
        index = collapse(edit, index, (0, found.along))
    domain = torch.ops.tokexport
    if found.counts == 2:
        return edit.call(domain.gather_tokens.default, x, index)
    sizes = (shape_of(x)[0], positions, shape_of(x)[2])
    nothing = edit.call(aten.full.default, [*sizes], 0.0, dtype=dtype_of(x))
    return edit.call(domain.scatter_tokens.default, nothing, index, x, "sum", True)


def _read(node: Node) -> OneHot | None:
    """Returns what a matrix of zeros and ones marks, through casts and a transpose."""
    if is_call(node, aten._to_copy.default, aten.to.dtype):
        return _read(operand(node))
    if _is_turned(node):
        found = _read(operand(node))
        return replace(found, counts=3 - found.counts) if found else None
    if is_call(node, aten.one_hot.default):
        index = operand(node)
        return OneHot(index, None, 2) if len(shape_of(index)) == 2 else None
    if not is_call(node, aten.eq.Tensor):
        return None
    sides = [operand(node), operand(node, "other")]
    for positions, index in (sides, sides[::-1]):
        found = _compared(node, positions, index)
        if found is not None:
            return found
    return None


def _is_turned(node: Node) -> bool:
    """Returns whether a call exchanges the last two of three axes."""
    if is_call(node, aten.transpose.int):
        return {axis(node, "dim0"), axis(node, "dim1")} == {1, 2}
    if not is_call(node, aten.permute.default):
        return False
    order = argument(node, "dims")
    return len(order) == 3 and [a % 3 for a in order] == [0, 2, 1]


def _compared(node: Node, positions: Node, index: Node) -> OneHot | None:
    """Reads index == positions, where one of the last two axes counts."""
    if not is_tensor(positions) or not is_index_tensor(index) or len(shape_of(node)) != 3:
        return None
    offset = 3 - len(shape_of(positions))
    if len(shape_of(index)) != 3 or shape_of(index)[0] != shape_of(node)[0]:
        return None
    for counts in (1, 2):
        own = counts - offset
        whole = own >= 0 and shape_of(positions)[own] == shape_of(node)[counts]
        if not whole or varying_axes(positions) > {own} or not counts_along(positions, own):
            continue
        if (
            counts not in varying_axes(index)
            and shape_of(index)[3 - counts] == shape_of(node)[3 - counts]
        ):
            return OneHot(index, 3 - counts, counts)
    return None


def _fold_into_sum(edit: Editor, scattered: Node) -> None:
    """Scatters into what the scattered rows are then added to."""
    if not is_call(scattered, torch.ops.tokexport.scatter_tokens.default):
        return
    if len(scattered.users) != 1:
        return
    (total,) = scattered.users
    if not is_call(total, aten.add.Tensor) or argument(total, "alpha") != 1:
        return
    one, other = total.args[:2]
    base = other if one is scattered else one
    if not isinstance(base, Node) or shape_of(base) != shape_of(scattered):
        return
    if dtype_of(base) != dtype_of(scattered):
        return
    with edit.before(total):
        index, x = operand(scattered, "index"), operand(scattered, "src")
        scatter = torch.ops.tokexport.scatter_tokens.default
        edit.replace(total, edit.call(scatter, base, index, x, "sum", True))
