"""Reads a chain of reshapes, transposes and slices as one view of what it starts from.

A view says where each element of a tensor lies in another, as numpy and torch do: an offset and a
stride for each axis, counted in elements. What only moves elements needs no copy when its reader
takes strides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Final

import onnx_ir as ir


@dataclass(frozen=True)
class View:
    """Where the elements of a value lie in another value.

    Attributes:
        base: The value that holds the elements, contiguous.
        shape: The sizes of the view.
        strides: How many elements of ``base`` one step along each axis is.
        offset: The element of ``base`` that comes first.
    """

    base: ir.Value
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def is_whole(self, shape: tuple[int, ...]) -> bool:
        """Returns whether it is all of the base in its order, in this shape."""
        base = shape_of(self.base)
        everything = base is not None and prod(base) == prod(shape) and self.offset == 0
        return everything and self.shape == shape and self.steps_by(_in_order(shape))

    def steps_by(self, strides: tuple[int, ...]) -> bool:
        """Returns whether its strides are these, apart from axes of one element."""
        axes = zip(self.shape, self.strides, strides, strict=True)
        return all(size == 1 or one == other for size, one, other in axes)


def view_of(value: ir.Value) -> View | None:
    """Returns a value as a view of the value that its last computation gave.

    Returns:
        None where a shape is not static.
    """
    node = value.producer()
    step = _STEPS.get(node.op_type) if node is not None and node.domain == "" else None
    if node is not None and step is not None and node.inputs[0] is not None:
        before = view_of(node.inputs[0])
        if before is not None and (after := step(before, node, value)) is not None:
            return after
    return _whole(value)


def integers_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """Returns the integers of a constant; None of anything else."""
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    if constant is None or not constant.dtype.is_integer():
        return None
    return tuple(int(number) for number in constant.numpy().reshape(-1))


def number_of(value: ir.Value | None) -> float | None:
    """Returns the number that a constant of one element holds; None of anything else."""
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    if constant is None or constant.size != 1:
        return None
    return float(constant.numpy().reshape(()))


def shape_of(value: ir.Value) -> tuple[int, ...] | None:
    """Returns a static shape; None of any other."""
    shape = value.shape
    return None if shape is None or not shape.is_static() else tuple(shape.numpy())


def _whole(value: ir.Value) -> View | None:
    shape = shape_of(value)
    if shape is None:
        return None
    return View(value, shape, _in_order(shape))


def _in_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the strides of a tensor whose elements lie in order."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _transpose(view: View, node: ir.Node, _: ir.Value) -> View:
    order = node.attributes.get_ints("perm", tuple(reversed(range(len(view.shape)))))
    return replace(
        view,
        shape=tuple(view.shape[axis] for axis in order),
        strides=tuple(view.strides[axis] for axis in order),
    )


def _slice(view: View, node: ir.Node, value: ir.Value) -> View | None:
    starts, ends = integers_of(node.inputs[1]), integers_of(node.inputs[2])
    shape = shape_of(value)
    if starts is None or ends is None or shape is None:
        return None
    axes = integers_of(node.inputs[3]) if len(node.inputs) > 3 else tuple(range(len(starts)))
    steps = integers_of(node.inputs[4]) if len(node.inputs) > 4 else (1,) * len(starts)
    if axes is None or steps is None or min(steps) < 1:
        return None
    strides, offset = list(view.strides), view.offset
    for start, axis, step in zip(starts, axes, steps, strict=True):
        first = max(start + view.shape[axis], 0) if start < 0 else min(start, view.shape[axis])
        offset += first * view.strides[axis]
        strides[axis] *= step
    return replace(view, shape=shape, strides=tuple(strides), offset=offset)


def _select(view: View, node: ir.Node, value: ir.Value) -> View | None:
    """Reads Gather with one constant index as the axis left out."""
    index, shape = integers_of(node.inputs[1]), shape_of(value)
    if index is None or len(index) != 1 or shape is None or len(shape) != len(view.shape) - 1:
        return None
    axis = node.attributes.get_int("axis", 0) % len(view.shape)
    place = index[0] % view.shape[axis]
    return replace(
        view,
        shape=shape,
        strides=view.strides[:axis] + view.strides[axis + 1 :],
        offset=view.offset + place * view.strides[axis],
    )


def _split(view: View, node: ir.Node, value: ir.Value) -> View | None:
    axis = node.attributes.get_int("axis", 0) % len(view.shape)
    before = 0
    for output in node.outputs:
        shape = shape_of(output)
        if shape is None:
            return None
        if output is value:
            offset = view.offset + before * view.strides[axis]
            return replace(view, shape=shape, offset=offset)
        before += shape[axis]
    return None


def _reshape(view: View, _: ir.Node, value: ir.Value) -> View | None:
    """Splits and joins axes; None where the elements of a joined axis do not lie evenly.

    Reshape, Squeeze, Unsqueeze and Flatten alike: the result's shape says all.
    """
    shape = shape_of(value)
    if shape is None or 0 in shape or 0 in view.shape:
        return None
    sizes = [size for size in view.shape if size != 1]
    steps = [step for size, step in zip(view.shape, view.strides, strict=True) if size != 1]
    strides: list[int] = []
    for size in reversed(shape):
        if size == 1:
            strides.insert(0, 0)
            continue
        if not sizes:
            return None
        left, step = size, steps[-1]
        while left > sizes[-1]:  # joins axes that lie evenly one in the other
            if left % sizes[-1] or len(sizes) < 2 or steps[-2] != steps[-1] * sizes[-1]:
                return None
            left //= sizes[-1]
            sizes.pop(), steps.pop()
        if sizes[-1] % left:
            return None
        strides.insert(0, step)
        if sizes[-1] == left:
            sizes.pop(), steps.pop()
        else:
            sizes[-1] //= left
            steps[-1] *= left
    return replace(view, shape=shape, strides=tuple(strides))


_STEPS: Final[dict[str, Callable[[View, ir.Node, ir.Value], View | None]]] = {
    "Transpose": _transpose,
    "Slice": _slice,
    "Gather": _select,
    "Split": _split,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Flatten": _reshape,
    "Identity": _reshape,
}
