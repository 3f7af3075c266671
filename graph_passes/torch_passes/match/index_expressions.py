"""Reads the meaning of index tensors for tokens, however the code computes them.

===========================  ====================================================================
``Ranked(v, start, stop)``    positions start…stop of the tokens ordered by descending v (B, Na)
``Ascending(Ranked)``         the same tokens in index order
``Partner(scores)``           for each row of scores (B, Na, Nb) its best column
``PartnerOf(scores, at)``     the partners of some of the rows
===========================  ====================================================================

argsort, sort and topk all say ``Ranked``; slices, unsqueezes and expands in any order leave the
meaning as it is. Numbers come ``Signed``: the smallest distance is the largest of the distances'
negatives, and both prefer the lower index among equals. The best row of each column is the best
column of each row of the ``turned`` scores.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

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
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.match.broadcast import kept_axes
from tokexport.graph_passes.torch_passes.match.token_indices import read_batched_index

_SHAPE_ONLY = (
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.repeat.default,
    aten.select.int,
)
_SORTS = (aten.sort.default, aten.sort.stable)
_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)


@dataclass(frozen=True)
class Signed:
    """The numbers of a node, or their negatives; of scores also with rows and columns exchanged."""

    node: Node
    negative: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Ranked:
    """Positions start…stop of the tokens by descending values (B, Na)."""

    values: Signed
    start: int
    stop: int

    def part(self, start: int, stop: int) -> Ranked:
        """Returns the positions start…stop of these."""
        return replace(self, start=self.start + start, stop=self.start + max(start, stop))


@dataclass(frozen=True)
class Ascending:
    """Ranked tokens, put into index order."""

    of: Ranked


@dataclass(frozen=True)
class Partner:
    """The best column of each row of scores (B, Na, Nb)."""

    scores: Signed


@dataclass(frozen=True)
class PartnerOf:
    """The best columns of the ranked rows."""

    scores: Signed
    at: Ranked


Meaning = Ranked | Ascending | Partner | PartnerOf


class IndexReader:
    """Reads the meaning of index nodes of one graph, each node once."""

    def __init__(self) -> None:
        self._known: dict[Node, Meaning | None] = {}

    def read(self, node: Node) -> Meaning | None:
        """Returns the meaning of an index; None if it is unknown."""
        if node not in self._known:
            self._known[node] = self._read(node) if is_tensor(node) else None
        return self._known[node]

    def _read(self, node: Node) -> Meaning | None:
        if node.op != "call_function":
            return None
        if is_call(node, *_SHAPE_ONLY):
            return self.read(operand(node)) if _only_spread(operand(node), node) else None
        if is_call(node, aten.argsort.default, aten.argsort.stable):
            return _order(node)
        if node.target is operator.getitem:
            return self._result(node)
        if is_call(node, aten.argmax.default, aten.argmin.default):
            return _partner(node)
        if is_call(node, aten.slice.Tensor):
            return self._slice(node)
        if is_call(node, aten.gather.default) and axis(node) == 1:
            return self._partners(operand(node), operand(node, "index"))
        if is_call(node, aten.take_along_dim.default) and argument(node, "dim") is not None:
            at_rows = axis(node) == 1
            return self._partners(operand(node), operand(node, "indices")) if at_rows else None
        if is_call(node, aten.index.Tensor):
            found = read_batched_index(node)
            if found is not None and shape_of(found.rows) == found.sizes == shape_of(node):
                return self._partners(operand(node), found.rows)
        return None

    def _partners(self, data: Node, rows: Node) -> PartnerOf | None:
        partner, at = self.read(data), self.read(rows)
        if isinstance(partner, Partner) and isinstance(at, Ranked):
            return PartnerOf(partner.scores, at)
        return None

    def _result(self, node: Node) -> Meaning | None:
        """Reads one of the results of sort, topk, max or a split."""
        call, position = node.args[0], node.args[1]
        assert isinstance(call, Node)
        assert isinstance(position, int)
        if is_call(call, aten.max.dim, aten.min.dim) and position == 1:
            return _partner(call)
        if _is_best_of_row(call) and position == 1:
            return _partner(call)
        if is_call(call, *_SORTS):
            return _order(call) if position == 1 else self._in_order(call)
        if is_call(call, aten.topk.default) and position == 1:
            source = operand(call)
            if _along_tokens(source, axis(call)):
                values = values_of(source, not argument(call, "largest"))
                return Ranked(values, 0, argument(call, "k"))
        if is_call(call, *_SPLITS) and axis(call) == 1:
            whole = self.read(operand(call))
            start = sum(int(part.shape[1]) for part in value(call)[:position])
            return _part(whole, start, start + shape_of(node)[1])
        return None

    def _in_order(self, call: Node) -> Ascending | None:
        """Reads the values of an ascending sort of indices."""
        source = operand(call)
        meaning = self.read(source)
        if argument(call, "descending") or not _along_tokens(source, axis(call)):
            return None
        return Ascending(meaning) if isinstance(meaning, Ranked) else None

    def _slice(self, node: Node) -> Meaning | None:
        whole, along = self.read(operand(node)), axis(node)
        size = shape_of(operand(node))[along]
        start = _clamped(argument(node, "start"), size, 0)
        stop = _clamped(argument(node, "end"), size, size)
        if argument(node, "step") != 1:
            return None
        if (start, stop) == (0, size) or along > 1:  # nothing varies behind the token axis
            return whole
        return _part(whole, start, stop) if along == 1 else None


def values_of(node: Node, negative: bool = False) -> Signed:
    """Walks back from (B, Na, 1) and the like to the values that were spread or negated."""
    while True:
        if is_call(node, *_SHAPE_ONLY) and _only_spread(operand(node), node):
            node = operand(node)
        elif is_call(node, aten.neg.default):
            node, negative = operand(node), not negative
        else:
            return Signed(node, negative)


def best_of(values: Signed) -> Signed | None:
    """Returns the scores (B, Na, Nb) whose best value per row the values (B, Na) are."""
    found = values_of(values.node, values.negative)
    node = found.node
    call = node.args[0] if node.target is operator.getitem else None
    partner = None
    best = is_call(call, aten.max.dim, aten.min.dim) or _is_best_of_row(call)
    if best and node.args[1] == 0:
        assert isinstance(call, Node)
        partner = _partner(call)
    elif is_call(node, aten.amax.default, aten.amin.default) and len(argument(node, "dim")) == 1:
        smallest = is_call(node, aten.amin.default)
        partner = _partner_along(node, argument(node, "dim")[0], smallest)
    return partner.scores if partner and partner.scores.negative == found.negative else None


def _order(node: Node) -> Ranked | None:
    """Reads the indices of a sort of all tokens."""
    source = operand(node)
    if not _along_tokens(source, axis(node)):
        return None
    values = values_of(source, not argument(node, "descending"))
    return Ranked(values, 0, shape_of(source)[1])


def _partner(node: Node) -> Partner | None:
    """Reads an arg-max or arg-min over an axis of scores (B, Na, Nb)."""
    smallest = is_call(node, aten.min.dim, aten.argmin.default)
    if is_call(node, aten.topk.default):
        smallest = not argument(node, "largest")
    return _partner_along(node, argument(node, "dim"), smallest)


def _is_best_of_row(node: object) -> bool:
    """Returns whether a call is a top-1 of each row of scores (B, Na, Nb)."""
    if not isinstance(node, Node) or not is_call(node, aten.topk.default):
        return False
    scores = operand(node)
    return argument(node, "k") == 1 and len(shape_of(scores)) == 3 and axis(node) == 2


def _partner_along(node: Node, along: int | None, smallest: bool) -> Partner | None:
    """Reads a best of each row (B, Na) or (B, Na, 1), or of each column (B, Nb)."""
    scores = operand(node)
    if along is None or len(shape_of(scores)) != 3 or along % 3 == 0:
        return None
    turned = along % 3 == 1
    if turned and (is_call(node, aten.topk.default) or argument(node, "keepdim")):
        return None  # (B, 1, Nb): the rows are not along axis 1
    return Partner(Signed(scores, smallest, turned))


def _part(whole: Meaning | None, start: int, stop: int) -> Meaning | None:
    """Reads a part of an index along its token axis."""
    if isinstance(whole, Ranked):
        return whole.part(start, stop)
    if isinstance(whole, PartnerOf):
        return replace(whole, at=whole.at.part(start, stop))
    return None


def _along_tokens(values: Node, along: int) -> bool:
    """Returns whether an axis is the token axis of (B, Na) or (B, Na, 1)."""
    shape = shape_of(values)
    return len(shape) >= 2 and along == 1 and all(size == 1 for size in shape[2:])


def _only_spread(before: Node, after: Node) -> bool:
    """Returns whether axes 0 and 1 stay what they are, and the rest was of size 1."""
    one, other = shape_of(before), shape_of(after)
    if len(one) < 2 or len(other) < 2 or one[:2] != other[:2]:
        return False
    kept = kept_axes(after)  # sizes alone do not distinguish (B, N) from a new axis before B = N
    if kept is None or any(kept.get(a) != a for a in (0, 1) if one[a] > 1):
        return False
    return all(size == 1 for size in one[2:]) or one == other


def _clamped(bound: int | None, size: int, default: int) -> int:
    if bound is None:
        return default
    return min(max(bound + size if bound < 0 else bound, 0), size)
