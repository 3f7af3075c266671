"""Holds a complex value of a graph under change as two real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import dtype_of, is_tensor
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten


@dataclass(frozen=True)
class Pair:
    """A complex value, or several of them as one call gives them.

    Attributes:
        real: Its real part: a node, or a Python number.
        imaginary: Its imaginary part; None stands for zeros.
    """

    real: Any
    imaginary: Any = None

    def filled(self, edit: Editor) -> Any:
        """Returns the imaginary part, as zeros if it is None."""
        if self.imaginary is not None:
            return self.imaginary
        if not isinstance(self.real, Node):
            return 0.0
        return edit.call(aten.zeros_like.default, self.real)


def real_type(dtype: torch.dtype) -> torch.dtype:
    """Returns the type of the parts of a complex type; any other type as it is."""
    return dtype.to_real() if dtype.is_complex else dtype


def is_complex(node: object) -> bool:
    """Returns whether a node gives a complex tensor, or several."""
    if not isinstance(node, Node):
        return False
    given = node.meta.get("val")
    values = given if isinstance(given, tuple | list) else (given,)
    return any(isinstance(one, torch.Tensor) and one.is_complex() for one in values)


def product(edit: Editor, target: Any, one: Pair, other: Pair) -> Pair:
    """Inserts a bilinear call of two pairs: (a + ib)(c + id) = ac - bd + i(ad + bc).

    Args:
        edit: The graph.
        target: Takes two real operands, nodes or numbers.
        one: The first pair.
        other: The second.
    """

    def call(left: Any, right: Any) -> Any:
        # an operator of tensors takes a number in second place alone
        if is_tensor(left):
            return edit.call(target, left, right)
        return edit.call(target, right, left)

    real = call(one.real, other.real)
    if one.imaginary is None and other.imaginary is None:
        return Pair(real)
    if other.imaginary is None:
        return Pair(real, call(one.imaginary, other.real))
    if one.imaginary is None:
        return Pair(real, call(one.real, other.imaginary))
    both = call(one.imaginary, other.imaginary)
    crossed = (call(one.real, other.imaginary), call(one.imaginary, other.real))
    return Pair(
        edit.call(aten.sub.Tensor, real, both),
        edit.call(aten.add.Tensor, *crossed),
    )


def conjugate(edit: Editor, pair: Pair) -> Pair:
    """Inserts the conjugate of a pair."""
    if pair.imaginary is None:
        return pair
    return Pair(pair.real, edit.call(aten.neg.default, pair.imaginary))


def magnitude(edit: Editor, pair: Pair) -> Node:
    """Inserts the absolute value of a pair; of parts over the larger, so that no square is lost."""
    if pair.imaginary is None:
        return edit.call(aten.abs.default, pair.real)
    sizes = [edit.call(aten.abs.default, one) for one in (pair.real, pair.imaginary)]
    ends = torch.finfo(dtype_of(pair.real))
    largest = edit.call(
        aten.clamp.default, edit.call(aten.maximum.default, *sizes), ends.tiny, ends.max
    )
    parts = [edit.call(aten.div.Tensor, one, largest) for one in sizes]
    squares = [edit.call(aten.mul.Tensor, one, one) for one in parts]
    root = edit.call(aten.sqrt.default, edit.call(aten.add.Tensor, *squares))
    return edit.call(aten.mul.Tensor, root, largest)


def turned(edit: Editor, size: Node, angle: Any) -> Pair:
    """Inserts the number of an absolute value and an angle in radians."""
    parts = [edit.call(part, angle) for part in (aten.cos.default, aten.sin.default)]
    real, imaginary = (edit.call(aten.mul.Tensor, size, part) for part in parts)
    return Pair(real, imaginary)
