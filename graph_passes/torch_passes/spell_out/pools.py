"""Writes pools whose last windows reach beyond the image, and pools to a size, as plain ones.

Before → after::

    max_pool2d(x, ceil_mode=True)   →  max_pool2d(pad(x, -inf))
    avg_pool2d(x, ceil_mode=True)   →  avg_pool2d(pad(x, 0)) · k² / (numbers in each window)
    adaptive_max_pool2d(x, size)    →  a maximum over the rows, then the columns, of each window

PyTorch drops a last window that begins beyond the image and its padding on the left
(``pooling_output_shape`` of its ATen library); ONNX's formula keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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

_MAX: Final = (aten.max_pool2d.default, aten.max_pool2d_with_indices.default)
_ADAPTIVE: Final = (aten.adaptive_max_pool2d.default,)
#: Those that give the positions of the largest numbers too.
_WITH_POSITIONS: Final = (*_ADAPTIVE, aten.max_pool2d_with_indices.default)


@dataclass(frozen=True)
class _Windows:
    """The windows along one axis."""

    size: int
    kernel: int
    stride: int
    padding: int

    @property
    def count(self) -> int:
        """How many there are, the last of which may reach beyond the end."""
        reach = self.size + 2 * self.padding - self.kernel
        found = math.ceil(reach / self.stride) + 1
        return found - ((found - 1) * self.stride >= self.size + self.padding)

    @property
    def beyond(self) -> int:
        """How far the padding behind the end has to reach for a pool that rounds down."""
        return max((self.count - 1) * self.stride + self.kernel - self.size - self.padding, 0)

    def numbers(self, with_padding: bool) -> list[int]:
        """Returns how many numbers of the image, or of its padding too, each window holds."""
        found = []
        for place in range(self.count):
            start = place * self.stride - self.padding
            end = min(start + self.kernel, self.size + self.padding)
            found.append(end - start if with_padding else min(end, self.size) - max(start, 0))
        return found


class SpellOutPools(NodePass):
    """Rewrites pools that round up, and adaptive ones."""

    name: ClassVar[str] = "spell out pools"

    targets = (*_MAX, *_ADAPTIVE, aten.avg_pool2d.default)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches pools that round up, and those to a size, of which the values alone are read."""
        if not is_call(node, *_ADAPTIVE) and not argument(node, "ceil_mode"):
            return None
        if is_call(node, aten.avg_pool2d.default):
            return _mean
        several = is_call(node, *_WITH_POSITIONS)
        if several and any(user.users and user.args[1] != 0 for user in node.users):
            return Reason("where its largest numbers stand is read too")
        if is_call(node, *_MAX):
            if _pair(argument(node, "dilation")) != (1, 1):
                return Reason("its windows leave numbers out")
            if not dtype_of(operand(node)).is_floating_point:
                return Reason(f"it is of {dtype_of(operand(node))}, which have no -∞")
        return _spelled


def _spelled(edit: Editor, node: Node) -> Node | tuple[Node | None, ...]:
    """Inserts the largest numbers."""
    if is_call(node, *_ADAPTIVE):
        found = _to_size(edit, operand(node), argument(node, "output_size"))
    else:
        found = _largest(edit, node)
    return (found, None) if is_call(node, *_WITH_POSITIONS) else found


def _pair(value: Any) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else [*value]
    return (numbers[0], numbers[-1])


def _windows(node: Node) -> tuple[_Windows, _Windows]:
    kernel = _pair(argument(node, "kernel_size"))
    stride = _pair(argument(node, "stride") or kernel)
    padding = _pair(argument(node, "padding"))
    parts = zip(shape_of(operand(node))[-2:], kernel, stride, padding, strict=True)
    rows, columns = (_Windows(*part) for part in parts)
    return rows, columns


def _padded(edit: Editor, x: Node, axes: Sequence[_Windows], fill: float) -> Node:
    rows, columns = axes
    pads = [columns.padding, columns.beyond, rows.padding, rows.beyond]
    return edit.call(aten.constant_pad_nd.default, x, pads, fill) if any(pads) else x


def _largest(edit: Editor, node: Node) -> Node:
    axes = _windows(node)
    x = _padded(edit, operand(node), axes, -math.inf)
    kernel, stride = [one.kernel for one in axes], [one.stride for one in axes]
    pool = edit.call(aten.max_pool2d_with_indices.default, x, kernel, stride)
    return _cut(edit, edit.item(pool, 0), axes)


def _mean(edit: Editor, node: Node) -> Node:
    axes, x = _windows(node), operand(node)
    kernel, stride = [one.kernel for one in axes], [one.stride for one in axes]
    pool = edit.call(aten.avg_pool2d.default, _padded(edit, x, axes, 0.0), kernel, stride)
    found = _cut(edit, pool, axes)
    divisor = argument(node, "divisor_override")
    inside = bool(argument(node, "count_include_pad"))
    rows, columns = (torch.tensor(one.numbers(inside), dtype=torch.float64) for one in axes)
    numbers = rows[:, None] * columns if divisor is None else torch.full((1, 1), float(divisor))
    share = (kernel[0] * kernel[1] / numbers).to(dtype_of(x))
    if bool((share == 1).all()):
        return found
    return edit.call(aten.mul.Tensor, found, edit.constant(share))


def _cut(edit: Editor, pool: Node, axes: Sequence[_Windows]) -> Node:
    """Takes the windows that there are, where the padding in front holds a further one."""
    for axis, one in zip((-2, -1), axes, strict=True):
        pool = edit.cut(pool, len(shape_of(pool)) + axis, 0, one.count)
    return pool


def _to_size(edit: Editor, x: Node, output_size: Any) -> Node:
    """Takes the maximum of each window, first along the rows and then along the columns."""
    rank = len(shape_of(x))
    for axis, count in zip((rank - 2, rank - 1), _pair(output_size), strict=True):
        size = shape_of(x)[axis]
        starts = [place * size // count for place in range(count)]
        ends = [-(-(place + 1) * size // count) for place in range(count)]
        widest = max(end - start for start, end in zip(starts, ends, strict=True))
        places = [
            min(start + step, end - 1)
            for start, end in zip(starts, ends, strict=True)
            for step in range(widest)
        ]
        shape = [*shape_of(x)[:axis], count, widest, *shape_of(x)[axis + 1 :]]
        if places != list(range(size)):
            x = edit.call(aten.index_select.default, x, axis, edit.constant(torch.tensor(places)))
        x = edit.call(aten.amax.default, edit.view(x, shape), [axis + 1])
    return x
