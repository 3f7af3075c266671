"""Bounds the whole numbers that a value of a graph can hold.

Token positions are integers that TensorRT can neither sort nor add up by index, and float32 holds
whole numbers exactly up to 2²⁴ only. What the graph itself makes (sorts, arg-max, arange,
constants, truth values) is bounded by shapes, and moving, selecting, adding or overwriting keeps
bounds, as far as the type holds them: beyond its ends a number wraps around. Integers that come
from outside may be anything that their type holds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    constant_of,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    operator_name,
    shape_of,
    value,
)
from tokexport.graph_passes.torch_passes.graph.editor import aten

#: Integers up to here are exact in float32.
LARGEST_EXACT: Final = 2**24

#: More factors above 1 than these are larger than any type.
_FEW_FACTORS: Final = 64

Bounds = tuple[int, int]

_POSITIONS = (
    aten.argsort.default,
    aten.argsort.stable,
    aten.argmax.default,
    aten.argmin.default,
)
_VALUES_AND_POSITIONS = (
    aten.sort.default,
    aten.sort.stable,
    aten.topk.default,
    aten.max.dim,
    aten.min.dim,
    aten.kthvalue.default,
    aten.median.dim,
)
ARANGES = (aten.arange.default, aten.arange.start, aten.arange.start_step)
#: Calls whose result holds numbers of their first operand and no others.
_MOVES = (
    aten.slice.Tensor,
    aten.select.int,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.repeat.default,
    aten.clone.default,
    aten.gather.default,
    aten.take_along_dim.default,
    aten.index_select.default,
    aten.index.Tensor,
    aten.permute.default,
    aten.transpose.int,
    aten.flip.default,
    aten.roll.default,
    aten.amax.default,
    aten.amin.default,
    torch.ops.aten.max.default,
    torch.ops.aten.min.default,
)
_SPLITS = (
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unbind.int,
)
_CONVERSIONS = (aten._to_copy.default, aten.to.dtype)
_COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
_EXACT = (torch.int32, torch.int64, torch.float32, torch.float64)
_FULLS = (aten.full.default, aten.full_like.default, aten.new_full.default)
#: An empty tensor may hold anything until it is written.
_ZEROS = (
    aten.zeros.default,
    aten.zeros_like.default,
    aten.new_zeros.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
)
_ONES = (aten.ones.default, aten.ones_like.default, aten.new_ones.default)
#: The arguments whose numbers a call puts together.
_JOINS: Final[dict[Any, tuple[str, ...]]] = {
    aten.where.self: ("self", "other"),
    aten.where.ScalarSelf: ("self", "other"),
    aten.where.ScalarOther: ("self", "other"),
    aten.where.Scalar: ("self", "other"),
    aten.scatter.src: ("self", "src"),
    aten.scatter.value: ("self", "value"),
    aten.select_scatter.default: ("self", "src"),
    aten.slice_scatter.default: ("self", "src"),
    aten.index_copy.default: ("self", "source"),
    aten.masked_fill.Scalar: ("self", "value"),
    aten.masked_fill.Tensor: ("self", "value"),
    aten.maximum.default: ("self", "other"),
    aten.minimum.default: ("self", "other"),
}


def fits_float32(node: object) -> bool:
    """Returns whether a value holds whole numbers that float32 holds exactly."""
    found = bounds_of(node)
    return found is not None and found[0] >= -LARGEST_EXACT and found[1] <= LARGEST_EXACT


def is_never_negative(node: object) -> bool:
    """Returns whether a value holds whole numbers of 0 or more."""
    found = bounds_of(node)
    return found is not None and found[0] >= 0


def bounds_of(node: object) -> Bounds | None:
    """Returns the smallest and the largest whole number a value may hold, or None for unknown."""
    return _Reader().read(node)


def arange_bounds(node: Node) -> tuple[float, float, float]:
    """Returns (first, stop, step) of an arange."""
    first: float = 0 if node.target is aten.arange.default else argument(node, "start")
    stop: float = argument(node, "end")
    step: float = argument(node, "step") if node.target is aten.arange.start_step else 1
    return first, stop, step


class _Reader:
    """Reads the bounds of values, each once."""

    def __init__(self) -> None:
        self._known: dict[Node, Bounds | None] = {}

    def read(self, given: object) -> Bounds | None:
        """Returns the bounds of a node's value, or of a number."""
        if isinstance(given, bool | int):
            return int(given), int(given)
        if isinstance(given, float) and given.is_integer():
            return int(given), int(given)
        if not isinstance(given, Node) or not is_tensor(given):
            return None
        if given not in self._known:
            self._known[given] = None
            found = _wrapped(self._read(given), dtype_of(given))
            self._known[given] = _ends_of(dtype_of(given)) if found is None else found
        return self._known[given]

    def _read(self, node: Node) -> Bounds | None:
        if dtype_of(node) == torch.bool:
            return 0, 1
        if node.op == "placeholder":
            return _of_constant(node)
        if node.op != "call_function":
            return None
        if is_call(node, *_POSITIONS):
            return 0, _length(node) - 1
        if is_call(node, *ARANGES):
            return _of_arange(node)
        if is_call(node, *_MOVES):
            return self.read(operand(node))
        if is_call(node, *_CONVERSIONS):
            return self.read(operand(node)) if dtype_of(node) in _EXACT else None
        if is_call(node, *_FULLS):
            return self.read(argument(node, "fill_value"))
        if is_call(node, *_ZEROS, *_ONES):
            number = int(is_call(node, *_ONES))
            return number, number
        if node.target in _JOINS:
            return self._union(argument(node, name) for name in _JOINS[node.target])
        if is_call(node, aten.copy.default):
            return self.read(operand(node, "src"))
        if is_call(node, aten.cat.default, aten.stack.default):
            return self._union(argument(node, "tensors"))
        if is_call(node, aten.index_put.default) and not argument(node, "accumulate"):
            return self._union((operand(node), operand(node, "values")))
        if operator_name(node) == "tokexport.gather_tokens":
            return self.read(operand(node, "x"))
        if node.target is operator.getitem:
            return self._part(node)
        if (compute := _ARITHMETIC.get(node.target)) is not None:
            return compute(self, node)
        return None

    def _union(self, parts: Iterable[object]) -> Bounds | None:
        found = [self.read(part) for part in parts]
        known = [part for part in found if part is not None]
        if not known or len(known) < len(found):
            return None
        return min(low for low, _ in known), max(high for _, high in known)

    def _part(self, node: Node) -> Bounds | None:
        """Reads one of several results."""
        call, position = node.args[0], node.args[1]
        if isinstance(call, Node) and operator_name(call) == "tokexport.bipartite_match":
            rows, columns = shape_of(operand(call, "scores"))[1:]
            return 0, (columns if position == 2 else rows) - 1
        if is_call(call, *_VALUES_AND_POSITIONS):
            assert isinstance(call, Node)
            return (0, _length(call) - 1) if position == 1 else self.read(operand(call))
        if is_call(call, *_SPLITS):
            assert isinstance(call, Node)
            return self.read(operand(call))
        return None

    def added(self, node: Node, sign: int) -> Bounds | None:
        """Reads a sum or a difference."""
        one, other = self.read(node.args[0]), self.read(node.args[1])
        if one is None or other is None or argument(node, "alpha") != 1:
            return None
        low, high = sorted((sign * other[0], sign * other[1]))
        return one[0] + low, one[1] + high

    def negated(self, node: Node) -> Bounds | None:
        """Reads a negative."""
        one = self.read(operand(node))
        return None if one is None else (-one[1], -one[0])

    def multiplied(self, node: Node) -> Bounds | None:
        """Reads a product."""
        one, other = self.read(node.args[0]), self.read(node.args[1])
        if one is None or other is None:
            return None
        corners = [a * b for a in one for b in other]
        return min(corners), max(corners)

    def remainder(self, node: Node) -> Bounds | None:
        """Reads a remainder by a positive number: torch gives it the sign of the divisor."""
        divisor = node.args[1]
        whole = self.read(operand(node)) is not None or not dtype_of(node).is_floating_point
        if whole and isinstance(divisor, int) and divisor > 0:
            return 0, divisor - 1
        return None

    def floored(self, node: Node) -> Bounds | None:
        """Reads a division by a positive number, rounded down."""
        one, divisor = self.read(operand(node)), node.args[1]
        down = (
            node.target is aten.floor_divide.default or argument(node, "rounding_mode") == "floor"
        )
        if one is None or not down or not isinstance(divisor, int) or divisor <= 0:
            return None
        return one[0] // divisor, one[1] // divisor

    def summed(self, node: Node) -> Bounds | None:
        """Reads a sum over axes, or a running one."""
        one = self.read(operand(node))
        if one is None:
            return None
        terms = 1
        for size in shape_of(operand(node)):
            terms *= size
        return min(one[0] * terms, one[0]), max(one[1] * terms, one[1])

    def multiplied_up(self, node: Node) -> Bounds | None:
        """Reads a product over an axis, or over all."""
        one = self.read(operand(node))
        if one is None:
            return None
        terms = _length(node) if node.target is aten.prod.dim_int else value(operand(node)).numel()
        largest = max(map(abs, one))
        if largest > 1 and terms > _FEW_FACTORS:
            return None
        largest = max(largest, largest**terms)
        return (0 if one[0] >= 0 else -largest), largest

    def clamped(self, node: Node) -> Bounds | None:
        """Reads a clamp by numbers."""
        low, high = argument(node, "min"), argument(node, "max")
        one = self.read(operand(node))
        if not all(isinstance(limit, int | None) for limit in (low, high)):
            return None
        if one is None:
            whole = not dtype_of(node).is_floating_point
            return (low, high) if whole and low is not None and high is not None else None
        low, high = one[0] if low is None else low, one[1] if high is None else high
        return min(max(one[0], low), high), min(max(one[1], low), high)


_ARITHMETIC: Final[dict[Any, Callable[[_Reader, Node], Bounds | None]]] = {
    aten.add.Tensor: lambda reader, node: reader.added(node, 1),
    aten.add.Scalar: lambda reader, node: reader.added(node, 1),
    aten.sub.Tensor: lambda reader, node: reader.added(node, -1),
    aten.sub.Scalar: lambda reader, node: reader.added(node, -1),
    aten.neg.default: _Reader.negated,
    aten.mul.Tensor: _Reader.multiplied,
    aten.mul.Scalar: _Reader.multiplied,
    aten.remainder.Scalar: _Reader.remainder,
    aten.div.Tensor_mode: _Reader.floored,
    aten.floor_divide.default: _Reader.floored,
    aten.sum.default: _Reader.summed,
    aten.sum.dim_IntList: _Reader.summed,
    aten.cumsum.default: _Reader.summed,
    aten.prod.default: _Reader.multiplied_up,
    aten.prod.dim_int: _Reader.multiplied_up,
    aten.clamp.default: _Reader.clamped,
}


def _ends_of(dtype: torch.dtype) -> Bounds | None:
    """Returns the ends of a narrow type, within which all of its numbers lie."""
    if dtype not in (torch.uint8, torch.int8, torch.int16):
        return None
    return torch.iinfo(dtype).min, torch.iinfo(dtype).max


def _wrapped(found: Bounds | None, dtype: torch.dtype) -> Bounds | None:
    """Returns the bounds of what a type makes of whole numbers; beyond its ends, it may be any."""
    if found is None or dtype.is_floating_point or dtype in (torch.bool, *_COMPLEX):
        return found
    ends = torch.iinfo(dtype)
    return found if ends.min <= found[0] and found[1] <= ends.max else (ends.min, ends.max)


def _length(node: Node) -> int:
    """Returns the number of positions that a sort or arg-max chooses from."""
    sizes = shape_of(operand(node))
    if argument(node, "dim") is None:
        count = 1
        for size in sizes:
            count *= size
        return count
    return sizes[axis(node)] if sizes else 1


def _of_arange(node: Node) -> Bounds | None:
    first, stop, step = arange_bounds(node)
    if not all(float(number).is_integer() for number in (first, stop, step)):
        return None
    positions = range(int(first), int(stop), int(step))
    return (min(positions), max(positions)) if positions else (0, 0)


def _of_constant(node: Node) -> Bounds | None:
    constant = constant_of(node)
    if (
        constant is None
        or constant.is_floating_point()
        or not 0 < constant.numel() <= LARGEST_EXACT
    ):
        return None
    return int(constant.min()), int(constant.max())
