"""Finds which whole numbers of an input index a table, and the sizes of the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from tokexport.exporter.inputs.batches import Batches
from tokexport.graph_passes.torch_passes.graph.calls import is_call, is_tensor, operand, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.runtimes.arrays import Array

#: Operators that only view, move or cast an index before it reaches a table.
_PASSES_ON: Final = (
    aten.view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.slice.Tensor,
    aten.select.int,
    aten.permute.default,
    aten.transpose.int,
    aten.clone.default,
    aten._to_copy.default,
    aten.to.dtype,
)
#: Operators that select along an axis at an index.
_PICKS: Final = (aten.index_select.default, aten.gather.default)


@dataclass(frozen=True)
class Indices:
    """The numbers of an input that index a table.

    Attributes:
        low: The lowest that each may be, in the input's shape; 0 for those that are none.
        high: The highest, in the same way.
        read: Which of them are one.
    """

    low: Array
    high: Array
    read: Array

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest that any of them may be."""
        return int(self.low[self.read].min()), int(self.high[self.read].max())

    @property
    def narrower(self) -> tuple[tuple[int, int], ...]:
        """The ends of those that have others than all numbers of the input have together."""
        own = {(int(low), int(high)) for low, high in self._pairs()}
        return tuple(sorted(own)) if len(own) > 1 or not self.read.all() else ()

    def filled(self, like: Array, fill: Callable[[Array, int, int], Array]) -> Array:
        """Returns an input whose indices are others.

        Args:
            like: The input; what is no index stays.
            fill: Takes numbers that have the same ends, and these; gives their new values.
        """
        found = like.copy()
        for low, high in self._pairs():
            here = self.read & (self.low == low) & (self.high == high)
            found[here] = fill(like[here], int(low), int(high))
        return found

    def _pairs(self) -> Array:
        ends = np.stack([self.low[self.read], self.high[self.read]], axis=-1)
        found: Array = np.unique(ends, axis=0)
        return found


def indices_of(captured: GraphModule, batches: Batches) -> dict[str, Indices]:
    """Returns which numbers of each input are an index of a table, where some are.

    Args:
        captured: The traced model, unlifted.
        batches: Its inputs.
    """
    found: dict[str, Indices] = {}
    nodes = captured.graph.find_nodes(op="placeholder")
    for name, node in zip(batches.names, nodes, strict=True):
        array = batches.arrays[name][0]
        if array.dtype.kind not in "iu":
            continue
        type_ends = np.iinfo(array.dtype)
        low = np.full(array.size, type_ends.min, dtype=object)
        high = np.full(array.size, type_ends.max, dtype=object)
        read = np.zeros(array.size, dtype=bool)
        for at, lowest, size in _reads(node, torch.arange(array.size).reshape(array.shape)):
            one = at.flatten().numpy()
            low[one] = np.maximum(low[one], lowest)
            high[one] = np.minimum(high[one], size - 1)
            read[one] = True
        if read.any():
            ends = (np.where(read, each, 0).astype(np.int64) for each in (low, high))
            found[name] = Indices(*(each.reshape(array.shape) for each in (*ends, read)))
    return found


def _reads(node: Node, at: Tensor) -> Iterator[tuple[Tensor, int, int]]:
    """Yields the places where a value is an index, the lowest index there, and the table's size.

    Args:
        node: The value.
        at: From which place of the input each of its numbers comes.
    """
    for user in node.users:
        if is_call(user, aten.embedding.default) and user.args[1] is node:
            yield at, 0, shape_of(operand(user, "weight"))[0]
        elif is_call(user, *_PICKS) and user.args[2] is node:
            yield at, 0, shape_of(operand(user))[_whole(user.args[1])]
        elif is_call(user, aten.index.Tensor) and isinstance(user.args[1], list | tuple):
            for axis, index in enumerate(user.args[1]):
                if index is node:
                    size = shape_of(operand(user))[axis]
                    yield at, -size, size
        elif is_call(user, *_PASSES_ON) and is_tensor(user) and not _is_floating(user):
            yield from _reads(user, _passed_on(user, at))


def _passed_on(user: Node, at: Tensor) -> Tensor:
    """Does to places what a call does to the numbers there."""
    if is_call(user, aten._to_copy.default, aten.to.dtype):
        return at
    if is_call(user, aten.view.default, aten.reshape.default):
        return at.reshape(shape_of(user))
    assert callable(user.target)
    found: Tensor = user.target(at, *user.args[1:], **user.kwargs)
    return found


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value


def _is_floating(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
