"""Drops the columns of a projection that nothing reads.

Before → after::

    q, k, _ = unbind(permute(view(linear(x, W, b), (B, N, 3, H, D)), …))
    →  q, k = …(linear(x, W[:2·H·D], b[:2·H·D]), (B, N, 2, H, D))
    a, _ = split(linear(x, W, b), (n, m))     →  a = linear(x, W[:n], b[:n])

Methods that need the probabilities before they merge compute q, k and v of all tokens and read two
of them; the third is wasted work on every target, and TensorRT-RTX 1.7.1 fails on this graph
(``kqv_gemm_split``). What is left is computed as before.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any, ClassVar, Final

from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    is_call,
    is_tensor,
    operand,
    shape_of,
    value,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass

_VIEWS: Final = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)
_SELECTIONS: Final = (
    aten.select.int,
    aten.slice.Tensor,
    aten.unbind.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
)


@dataclass(frozen=True)
class Read:
    """One reader of some parts of a projection.

    Attributes:
        node: The value read.
        start: The first part.
        stop: The part behind the last.
        picked: Whether the axis of the parts is gone from the value.
    """

    node: Node
    start: int
    stop: int
    picked: bool


@dataclass(frozen=True)
class Projection:
    """A linear layer whose columns are read in parts.

    Attributes:
        linear: The layer, (…, parts · columns of a part).
        view: Its reshape to (…, parts, …); None where the parts are its columns.
        permute: What permutes the view; None where nothing does.
        along: The axis of the parts in what is read.
        parts: How many there are.
        reads: All that is read.
    """

    linear: Node
    view: Node | None
    permute: Node | None
    along: int
    parts: int
    reads: tuple[Read, ...]

    @property
    def read(self) -> list[int]:
        """The parts that something reads, in order."""
        return sorted({part for one in self.reads for part in range(one.start, one.stop)})


class DropUnreadColumns(TorchPass):
    """Narrows linear layers to what is read of them."""

    name: ClassVar[str] = "drop unread columns"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many layers it narrowed."""
        changed = 0
        for node in list(edit.graph.nodes):
            found = _find(node) if is_call(node, aten.linear.default) else None
            if found is not None and 0 < len(found.read) < found.parts:
                _narrow(edit, found)
                changed += 1
        return changed


def columns_read(linear: Node) -> int:
    """Returns how many columns of a linear layer are left without unread ones."""
    columns, found = shape_of(linear)[-1], _find(linear)
    if found is None or not found.read:
        return columns
    return columns // found.parts * len(found.read)


def own_projection(edit: Editor, node: Node) -> Node | None:
    """Computes one of several parts of a projection by a layer of its own.

    Returns:
        The replacement of the part; None where it is no part, or the only one.
    """
    linear = node
    while not is_call(linear, aten.linear.default):
        if not is_call(linear, operator.getitem, aten.permute.default, *_VIEWS, *_SELECTIONS):
            return None
        linear = linear.all_input_nodes[0]
    found = _find(linear) if linear is not node else None
    if found is None or len(found.reads) < 2:
        return None
    for one in found.reads:
        if one.node is node and one.start < one.stop:
            alone = replace(found, reads=(one,))
            return _part(edit, alone, one, _narrowed(edit, alone))
    return None


def _find(linear: Node) -> Projection | None:
    """Returns how a layer is read, or None where some reader is not understood."""
    if len(shape_of(operand(linear, "weight"))) != 2:
        return None
    shape = shape_of(linear)
    source, view, permute, along, parts = linear, None, None, len(shape) - 1, shape[-1]
    if follower := _only_reader(source, *_VIEWS):
        source = view = follower
        viewed = shape_of(view)
        if len(viewed) <= along or viewed[:along] != shape[:along]:
            return None
        parts = viewed[along]
        if follower := _only_reader(source, aten.permute.default):
            source = permute = follower
            along = [a % len(viewed) for a in argument(permute, "dims")].index(along)
    reads = _reads(source, along)
    return Projection(linear, view, permute, along, parts, reads) if reads else None


def _only_reader(node: Node, *targets: Any) -> Node | None:
    """Returns the one reader of a value, if it is a call of one of the targets."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and is_call(readers[0], *targets) else None


def _reads(source: Node, along: int) -> tuple[Read, ...]:
    """Returns what is read of a value along an axis; nothing where something reads it otherwise."""
    found: list[Read] = []
    size = shape_of(source)[along]
    for user in source.users:
        if not is_call(user, *_SELECTIONS) or axis(user) != along:
            return ()
        if is_call(user, aten.select.int):
            part = argument(user, "index") % size
            found.append(Read(user, part, part + 1, picked=True))
        elif is_call(user, aten.slice.Tensor):
            if argument(user, "step") != 1:
                return ()
            start, stop, _ = slice(argument(user, "start"), argument(user, "end")).indices(size)
            found.append(Read(user, start, max(start, stop), picked=False))
        elif is_call(user, aten.unbind.int):
            found += [Read(item, i, i + 1, picked=True) for item, i in _items(user)]
        else:
            bounds = [0, *accumulate(part.shape[along] for part in value(user))]
            found += [
                Read(item, bounds[i], bounds[i + 1], picked=False) for item, i in _items(user)
            ]
    return tuple(found)


def _items(node: Node) -> list[tuple[Node, int]]:
    """Returns the results of a call that are read, and the position of each."""
    found: list[tuple[Node, int]] = []
    for user in node.users:
        position = user.args[1]
        assert is_call(user, operator.getitem)
        assert isinstance(position, int)
        found.append((user, position))
    return found


def _narrow(edit: Editor, found: Projection) -> None:
    with edit.before(found.linear):
        result = _narrowed(edit, found)
    for one in found.reads:
        with edit.before(one.node):
            edit.replace(one.node, _part(edit, found, one, result))


def _narrowed(edit: Editor, found: Projection) -> Node:
    """Inserts the layer with the columns that are read, and its view and permutation."""
    linear, kept = found.linear, found.read
    columns = shape_of(linear)[-1] // found.parts
    weight, bias = operand(linear, "weight"), argument(linear, "bias")
    weight = _taken(edit, weight, kept, columns)
    bias = _taken(edit, bias, kept, columns) if is_tensor(bias) else None
    result = edit.call(aten.linear.default, operand(linear, "input"), weight, bias)
    if found.view is not None:
        place = len(shape_of(linear)) - 1
        behind = shape_of(found.view)[place + 1 :]
        assert prod(behind) == columns
        result = edit.view(result, (*shape_of(linear)[:-1], len(kept), *behind))
    if found.permute is not None:
        result = edit.permute(result, argument(found.permute, "dims"))
    return result


def _taken(edit: Editor, weight: Node, kept: Sequence[int], columns: int) -> Node:
    """Inserts the rows of a weight that make the columns of the kept parts."""
    runs: list[list[int]] = []
    for part in kept:
        if runs and runs[-1][1] == part:
            runs[-1][1] = part + 1
        else:
            runs.append([part, part + 1])
    cuts = [edit.cut(weight, 0, start * columns, stop * columns) for start, stop in runs]
    return cuts[0] if len(cuts) == 1 else edit.call(aten.cat.default, cuts, 0)


def _part(edit: Editor, found: Projection, one: Read, narrowed: Node) -> Node:
    """Inserts what reads the same parts of the narrowed layer."""
    if one.start == one.stop:
        return edit.call(aten.slice.Tensor, narrowed, found.along, 0, 0)
    start = found.read.index(one.start)
    if one.picked and len(found.read) == 1:
        return edit.call(aten.squeeze.dim, narrowed, found.along)
    if one.picked:
        return edit.call(aten.select.int, narrowed, found.along, start)
    return edit.cut(narrowed, found.along, start, start + one.stop - one.start)
