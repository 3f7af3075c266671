"""Writes shifts of bits as products and quotients with powers of two.

Before → after, of whole numbers of w bits::

    x << k   →  x · 2ᵏ,         0 where k < 0 or k >= w; of w - 1 bits 2ᵏ is the least number
    x >> k   →  floor(x / 2ᵏ),  -1 or 0, as the sign says, where k < 0 or the power is too large

A product leaves the upper bits out, as a shift does. ONNX shifts numbers without a sign alone, and
few runtimes do.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import argument, dtype_of, is_call, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling
from tokexport.graph_passes.torch_passes.spell_out.sign_bits import as_type

_LEFT: Final = (
    *(aten.bitwise_left_shift.Tensor, aten.bitwise_left_shift.Tensor_Scalar),
    *(aten.bitwise_left_shift.Scalar_Tensor, aten.__lshift__.Tensor, aten.__lshift__.Scalar),
)
_RIGHT: Final = (
    *(aten.bitwise_right_shift.Tensor, aten.bitwise_right_shift.Tensor_Scalar),
    *(aten.bitwise_right_shift.Scalar_Tensor, aten.__rshift__.Tensor, aten.__rshift__.Scalar),
)


class SpellOutShifts(NodePass):
    """Rewrites ``<<`` and ``>>`` of whole numbers."""

    name: ClassVar[str] = "spell out shifts"
    comes_before: ClassVar[tuple[str, ...]] = ("promote types", "divide integers")

    targets = (*_LEFT, *_RIGHT)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches a shift of whole numbers."""
        if dtype_of(node).is_floating_point:
            return Reason(f"it shifts {dtype_of(node)}, which have no bits of a whole number")
        return _spelled


def _spelled(edit: Editor, node: Node) -> Node:
    wanted = dtype_of(node)
    first = node.target._schema.arguments[0].name  # type: ignore[union-attr]
    x, count = argument(node, first), argument(node, "other")
    x = _of_type(edit, x, wanted)
    powers, last = _powers(wanted, left=is_call(node, *_LEFT))
    if not isinstance(count, Node):
        return _by_number(edit, node, x, int(count))
    places = edit.call(aten.clamp.default, as_type(edit, count, torch.int64), 0, last)
    factor = edit.call(aten.index.Tensor, edit.constant(powers), [places])
    fits = edit.call(
        aten.logical_and.default,
        edit.call(aten.ge.Scalar, count, 0),
        edit.call(aten.le.Scalar, count, last),
    )
    if is_call(node, *_LEFT):
        found, beyond = edit.call(aten.mul.Tensor, x, factor), None
    else:
        found, beyond = edit.call(aten.floor_divide.default, x, factor), _emptied(edit, x)
    beyond = edit.call(aten.zeros_like.default, found) if beyond is None else beyond
    return edit.call(aten.where.self, fits, found, edit.expand(beyond, shape_of(found)))


def _by_number(edit: Editor, node: Node, x: Node, count: int) -> Node:
    powers, last = _powers(dtype_of(node), left=is_call(node, *_LEFT))
    if is_call(node, *_LEFT):
        if not 0 <= count <= last:
            return edit.call(aten.zeros_like.default, x)
        return edit.call(aten.mul.Tensor, x, edit.constant(powers[count].clone()))
    if not 0 <= count <= last:
        return _emptied(edit, x)
    return edit.call(aten.floor_divide.default, x, edit.constant(powers[count].clone()))


def _powers(dtype: torch.dtype, *, left: bool) -> tuple[torch.Tensor, int]:
    """Returns the powers of two to shift by, and the largest exponent."""
    signed = torch.iinfo(dtype).min < 0
    last = torch.iinfo(dtype).bits - 1 - (signed and not left)
    powers = [1 << k for k in range(last + 1)]
    if signed and left:
        powers[-1] = torch.iinfo(dtype).min
    return torch.tensor(powers, dtype=dtype), last


def _emptied(edit: Editor, x: Node) -> Node:
    """Inserts what is left of numbers without their bits: those of the sign."""
    below = edit.call(aten.lt.Scalar, x, 0)
    return edit.call(aten.neg.default, as_type(edit, below, dtype_of(x)))


def _of_type(edit: Editor, part: Any, wanted: torch.dtype) -> Node:
    if isinstance(part, Node):
        return as_type(edit, part, wanted)
    return edit.constant(torch.tensor(part, dtype=wanted))
