"""Writes medians and k-th values as positions of a sort.

Before → after, along an axis of n numbers::

    kthvalue(x, k, d)   →  sort(x, d, stable), position k - 1
    median(x, d)        →  sort(x, d, stable), position (n - 1) // 2; NaN where a number is
    nanmedian(x, d)     →  sort(where(isnan(x), ∞, x), d), position (m - 1) // 2 of the m that are
                           no NaN; NaN where all are
    median(x)           →  median(x.reshape(-1), 0)

Of two numbers in the middle PyTorch takes the lower. Which of several equal values a call points at
is its secret; the value is the same, and the position given here holds it. Runtimes sort NaN to any
place, so none reaches a sort.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    dtype_of,
    is_call,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling

_OF_ALL: Final = (aten.median.default, aten.nanmedian.default)
_NAN_LEFT_OUT: Final = (aten.nanmedian.default, aten.nanmedian.dim)
_ALONG: Final = (aten.median.dim, aten.nanmedian.dim, aten.kthvalue.default)


class SpellOutRanks(NodePass):
    """Rewrites ``median``, ``nanmedian`` and ``kthvalue`` by sorts."""

    name: ClassVar[str] = "spell out ranks"
    comes_before: ClassVar[tuple[str, ...]] = ("sort stably",)

    targets = (*_OF_ALL, *_ALONG)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches a rank among some numbers."""
        if 0 in shape_of(operand(node)):
            return Reason(f"it is of {shape_of(operand(node))}, which holds no number")
        return _of_all if is_call(node, *_OF_ALL) else _spelled


def _of_all(edit: Editor, node: Node) -> Node:
    return _spelled(edit, node)[0]


def _spelled(edit: Editor, node: Node) -> tuple[Node, Node]:
    """Inserts the value and its position."""
    x, flat = operand(node), is_call(node, *_OF_ALL) or not shape_of(operand(node))
    x = edit.view(x, (-1,)) if flat else x
    along = 0 if flat else axis(node)
    parts = _of_floats if dtype_of(x).is_floating_point else _of_whole
    found = parts(edit, node, x, along)
    if flat:
        return edit.view(found[0], ()), edit.view(found[1], ())
    if argument(node, "keepdim"):
        return found
    return edit.call(aten.squeeze.dim, found[0], along), edit.call(
        aten.squeeze.dim, found[1], along
    )


def _of_whole(edit: Editor, node: Node, x: Node, along: int) -> tuple[Node, Node]:
    at = _position(node, shape_of(x)[along])
    values, order = _sorted(edit, x, along)
    return edit.cut(values, along, at, at + 1), edit.cut(order, along, at, at + 1)


def _of_floats(edit: Editor, node: Node, x: Node, along: int) -> tuple[Node, Node]:
    size = shape_of(x)[along]
    gone = edit.call(aten.isnan.default, x)
    held = edit.call(aten.logical_not.default, gone)
    most = edit.constant(torch.tensor(math.inf, dtype=dtype_of(x)))
    keys = edit.derived(edit.call(aten.where.self, held, x, most))
    count = edit.call(aten.sum.dim_IntList, held, [along], True)
    values, order = _sorted(edit, keys, along)
    if is_call(node, *_NAN_LEFT_OUT):
        half = edit.call(aten.floor_divide.default, edit.call(aten.sub.Scalar, count, 1), 2)
        at = edit.call(aten.clamp_min.default, half, 0)
        value = edit.call(aten.gather.default, values, along, at)
        nowhere = edit.call(aten.eq.Scalar, count, 0)
        place = _first(edit, edit.call(aten.eq.Tensor, x, value), along)
    else:
        position = _position(node, size)
        value = edit.cut(values, along, position, position + 1)
        needed = size if is_call(node, aten.median.default, aten.median.dim) else position + 1
        nowhere = edit.call(aten.lt.Scalar, count, needed)
        place = edit.cut(order, along, position, position + 1)
        place = edit.call(aten.where.self, nowhere, _first(edit, gone, along), place)
    nan = edit.constant(torch.tensor(math.nan, dtype=dtype_of(x)))
    return edit.call(aten.where.self, nowhere, nan, value), place


def _position(node: Node, size: int) -> int:
    return argument(node, "k") - 1 if is_call(node, aten.kthvalue.default) else (size - 1) // 2


def _sorted(edit: Editor, x: Node, along: int) -> tuple[Node, Node]:
    ordered = edit.call(aten.sort.stable, x, stable=True, dim=along, descending=False)
    return edit.item(ordered, 0), edit.item(ordered, 1)


def _first(edit: Editor, hits: Node, along: int) -> Node:
    """Inserts the first position of an axis where something holds; 0 where it does nowhere."""
    number = edit.call(aten._to_copy.default, hits, dtype=torch.int32)
    return edit.call(aten.argmax.default, number, along, True)
