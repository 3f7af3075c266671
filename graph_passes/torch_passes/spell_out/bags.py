"""Writes bags of embeddings as sums, means or largest values of looked up rows.

Before → after, of B bags of which the b-th holds the positions from offsets[b] to the next::

    embedding_bag(w, ids, offsets, "sum")    →  Σ_n where(in bag, embedding(w, ids)[n] · s[n], 0)
    embedding_bag(w, ids, offsets, "mean")   →  the same, divided by how many there are, or 1
    embedding_bag(w, ids, offsets, "max")    →  max_n where(in bag, …, -∞), 0 of an empty bag

Bags that are known to be of one length are an axis of their own, and need no mask. Positions of the
padding index are in no bag. torch's exporter writes a loop over bags, which few runtimes take.
"""

from __future__ import annotations

import math
import operator
from typing import Any, ClassVar, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling
from tokexport.graph_passes.torch_passes.match.constant_values import ConstantValues
from tokexport.graph_passes.torch_passes.spell_out.sign_bits import as_type

_BAGS: Final = (
    *(aten.embedding_bag.default, aten.embedding_bag.padding_idx),
    *(aten._embedding_bag.default, aten._embedding_bag_forward_only.default),
)
_SUM, _MEAN, _MAX = range(3)


class SpellOutBags(NodePass):
    """Rewrites ``embedding_bag``, of which the rows alone are read."""

    name: ClassVar[str] = "spell out bags"

    targets = _BAGS

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches bags of which no more than the rows is read."""
        users = [user for user in node.users if user.users or user.args[1] == 0]
        if any(user.target is not operator.getitem or user.args[1] != 0 for user in users):
            return Reason("more is read than its rows: which bag a position is in, or how many are")
        return _spelled


def _spelled(edit: Editor, node: Node) -> tuple[Node | None, ...]:
    return _rows(edit, node), None, None, None


def _rows(edit: Editor, node: Node) -> Node:
    """Inserts the bags (B, D)."""
    weight = operand(node, "weight")
    ids = as_type(edit, operand(node, "indices"), torch.int64)
    bags = _lengths(edit, node)
    rows = edit.call(aten.embedding.default, weight, ids)  # (N, D)
    shape = (bags, -1) if isinstance(bags, int) else (1, -1)
    rows = edit.view(rows, (*shape, shape_of(rows)[1]))
    inside = None if isinstance(bags, int) else bags  # (B, N)
    padding = _padding(node)
    if padding is not None:
        live = edit.view(edit.call(aten.ne.Scalar, ids, padding), shape)
        inside = live if inside is None else edit.call(aten.logical_and.default, inside, live)
    factors = argument(node, "per_sample_weights")
    if factors is not None:
        rows = edit.call(aten.mul.Tensor, rows, edit.view(factors, (*shape, 1)))
    largest = argument(node, "mode") == _MAX
    if inside is not None:
        empty = -math.inf if largest else 0.0
        none = edit.constant(torch.tensor(empty, dtype=dtype_of(rows)))
        mask = edit.call(aten.unsqueeze.default, inside, 2)
        rows = edit.call(aten.where.self, mask, rows, none)
    if not largest:
        total = edit.call(aten.sum.dim_IntList, rows, [1])
        return _divided(edit, total, inside, shape_of(rows)[1], argument(node, "mode"))
    found = edit.call(aten.amax.default, rows, [1])
    if inside is None:
        return found
    count = edit.call(aten.sum.dim_IntList, inside, [1], True)
    nothing = edit.call(aten.zeros_like.default, found)
    return edit.call(aten.where.self, edit.call(aten.gt.Scalar, count, 0), found, nothing)


def _divided(edit: Editor, total: Node, inside: Node | None, length: int, mode: int) -> Node:
    if mode == _SUM:
        return total
    if inside is None:
        return edit.call(aten.div.Scalar, total, length)
    count = edit.call(aten.sum.dim_IntList, inside, [1], True)
    count = as_type(edit, edit.call(aten.clamp_min.default, count, 1), dtype_of(total))
    return edit.call(aten.div.Tensor, total, count)


def _lengths(edit: Editor, node: Node) -> int | Node:
    """Returns how many bags of one length there are, or which positions (B, N) are in which."""
    offsets, (count,) = operand(node, "offsets"), shape_of(operand(node, "indices"))
    last = bool(argument(node, "include_last_offset"))
    bags = shape_of(offsets)[0] - last
    value = ConstantValues().of(offsets)
    if value is not None and bags and count % bags == 0:
        even = torch.arange(bags + last) * (count // bags)
        if torch.equal(value.long(), even):
            return bags
    offsets = as_type(edit, offsets, torch.int64)
    ends: Any = edit.cut(offsets, 0, 1, bags + last)
    if not last:
        ends = edit.call(aten.cat.default, [ends, edit.constant(torch.tensor([count]))])
    places = edit.constant(torch.arange(count)[None])
    begun = edit.call(aten.ge.Tensor, places, edit.view(edit.cut(offsets, 0, 0, bags), (bags, 1)))
    ended = edit.call(aten.lt.Tensor, places, edit.view(ends, (bags, 1)))
    return edit.call(aten.logical_and.default, begun, ended)


def _padding(node: Node) -> int | None:
    """Returns the index that is in no bag."""
    if is_call(node, aten.embedding_bag.default):
        return None
    index: int | None = argument(node, "padding_idx")
    if index is None or not is_call(node, aten.embedding_bag.padding_idx):
        return index if index is not None and index >= 0 else None
    return index % shape_of(operand(node, "weight"))[0]
