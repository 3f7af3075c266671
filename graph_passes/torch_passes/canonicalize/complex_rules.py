"""Gives the rule of each operator for complex values as pairs of real ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.canonicalize.fourier_products import (
    framed,
    steps,
    transformed,
)
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    base_name,
    dtype_of,
    normal_axis,
    operand,
    operator_name,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.complex_pairs import (
    Pair,
    conjugate,
    is_complex,
    magnitude,
    product,
    real_type,
    turned,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.match.constant_values import ConstantValues

#: Operators that do to each part what they do to a real tensor.
PART_BY_PART: Final = frozenset(
    name
    for line in (
        "slice select flip roll cat stack neg clone alias detach contiguous lift_fresh_copy",
        "reshape view _unsafe_view permute transpose t unsqueeze expand expand_as squeeze repeat",
        "flatten unflatten movedim split split_with_sizes chunk unbind unsafe_split tensor_split",
        "index index_select gather take_along_dim slice_scatter select_scatter index_put",
        "scatter scatter_add index_add index_copy copy sum mean cumsum diagonal tril triu unfold",
        "narrow where",
    )
    for name in line.split()
)
#: Of those, the ones that choose by whole numbers and masks.
_CHOOSING: Final = frozenset(
    name
    for line in (
        "index index_select gather take_along_dim where index_put scatter scatter_add index_add",
        "index_copy",
    )
    for name in line.split()
)
#: Operators that are linear in each of two operands.
_PRODUCTS: Final = frozenset(
    f"aten.{n}" for n in ("mul", "matmul", "bmm", "mm", "mv", "dot", "outer", "ger", "kron")
)
#: The largest whole power that is written as products.
_LARGEST_POWER: Final = 8


@dataclass(frozen=True)
class Context:
    """The parts of a graph that rules read.

    Attributes:
        edit: The graph.
        pairs: The pair of each complex value so far.
        constants: The values that no input and no weight reaches.
    """

    edit: Editor
    pairs: Mapping[Node, Pair]
    constants: ConstantValues

    def pair(self, part: Any) -> Pair:
        """Returns an operand as a pair, also a number and a real tensor."""
        if isinstance(part, Node):
            return self.pairs[part] if part in self.pairs else Pair(part)
        if isinstance(part, complex):
            return Pair(part.real, part.imag or None)
        return Pair(part)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Inserts a call."""
        return self.edit.call(target, *args, **kwargs)


def spelled(context: Context, node: Node) -> Pair | None:
    """Inserts the replacement of a call on complex values; None without a rule."""
    name = operator_name(node)
    short = name.removeprefix("aten.")
    if short in PART_BY_PART or base_name(node.target) == "getitem":
        return _part_by_part(context, node)
    if name in _PRODUCTS:
        return product(context.edit, node.target, *map(context.pair, node.args[:2]))
    rule = _RULES.get(short)
    if rule is not None:
        return rule(context, node)
    operand = node.args[0] if node.args else None
    if not isinstance(operand, Node) or isinstance(operand.meta.get("val"), tuple | list):
        return None
    pair = context.pair(operand)
    if short == "stft":
        window = argument(node, "window")
        value = context.constants.of(window)
        known = window is None or value is not None
        return framed(context.edit, node, value) if known and pair.imaginary is None else None
    along = steps(node, shape_of(operand))
    return None if along is None else transformed(context.edit, pair, along)


def _part_by_part(context: Context, node: Node) -> Pair:
    """Calls an operator on the real parts, and on the imaginary ones."""
    choosing = operator_name(node).removeprefix("aten.") in _CHOOSING

    def part(value: Any, second: bool) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(part(one, second) for one in value)
        if isinstance(value, torch.dtype):
            return real_type(value)
        if not isinstance(value, Node):
            return value
        pair = context.pair(value)
        chooses = choosing and value not in context.pairs and not dtype_of(value).is_floating_point
        return pair.filled(context.edit) if second and not chooses else pair.real

    found = []
    for second in (False, True):
        kwargs = {name: part(value, second) for name, value in node.kwargs.items()}
        found.append(context.call(node.target, *part(node.args, second), **kwargs))
    return Pair(*found)


def _sum(context: Context, node: Node) -> Pair:
    """``add``, ``sub`` and ``rsub``."""
    one, other = map(context.pair, node.args[:2])
    real = context.call(node.target, one.real, other.real, *node.args[2:], **node.kwargs)
    if one.imaginary is None and other.imaginary is None:
        return Pair(real)
    if other.imaginary is None and operator_name(node) != "aten.rsub":
        return Pair(real, context.edit.expand(one.imaginary, shape_of(real)))
    parts = (one.filled(context.edit), other.filled(context.edit))
    return Pair(real, context.call(node.target, *parts, *node.args[2:], **node.kwargs))


def _filled_with(context: Context, node: Node) -> Pair:
    """``masked_fill`` and ``constant_pad_nd``: each part has a value of its own."""
    source, value = context.pair(node.args[0]), context.pair(argument(node, "value"))
    parts = []
    for own, number in (
        (source.real, value.real),
        (source.filled(context.edit), value.filled(context.edit)),
    ):
        target = node.target
        if operator_name(node) == "aten.masked_fill":
            of_tensor = isinstance(number, Node)
            target = aten.masked_fill.Tensor if of_tensor else aten.masked_fill.Scalar
        parts.append(context.call(target, own, node.args[1], number))
    return Pair(*parts)


def _covered(context: Context, node: Node) -> Pair:
    """``fill``: every number becomes one value."""
    source, value = context.pair(node.args[0]), context.pair(node.args[1])
    parts = zip(
        (source.real, source.filled(context.edit)),
        (value.real, value.filled(context.edit)),
        strict=True,
    )
    return Pair(*(context.call(node.target, own, number) for own, number in parts))


def _norm(context: Context, node: Node) -> Pair:
    size = magnitude(context.edit, context.pair(node.args[0]))
    kwargs = {name: one for name, one in node.kwargs.items() if name != "dtype"}
    return Pair(context.call(node.target, size, *node.args[1:], **kwargs))


def _padded(context: Context, node: Node) -> Pair:
    if argument(node, "mode") != "constant":
        return _part_by_part(context, node)
    source, value = context.pair(node.args[0]), context.pair(argument(node, "value") or 0.0)
    parts = zip((source.real, source.filled(context.edit)), (value.real, 0.0), strict=True)
    target = aten.constant_pad_nd.default
    return Pair(*(context.call(target, own, node.args[1], number) for own, number in parts))


def _shifted(context: Context, node: Node) -> Pair:
    """``fftshift``, a roll by half of each axis, and its inverse."""
    pair = context.pair(node.args[0])
    shape = shape_of(pair.real)
    axes = argument(node, "dim")
    axes = [normal_axis(axis, len(shape)) for axis in (range(len(shape)) if axes is None else axes)]
    back = operator_name(node).endswith("ifftshift")
    shifts = [(shape[axis] + back) // 2 for axis in axes]
    parts = (part for part in (pair.real, pair.imaginary) if part is not None)
    return Pair(*(context.call(aten.roll.default, part, shifts, axes) for part in parts))


def _complex(context: Context, node: Node) -> Pair:
    real, imaginary = operand(node, "real"), operand(node, "imag")
    shape = torch.broadcast_shapes(shape_of(real), shape_of(imaginary))
    return Pair(context.edit.expand(real, shape), context.edit.expand(imaginary, shape))


def _of_last_axis(context: Context, node: Node) -> Pair:
    both = operand(node)
    last = len(shape_of(both)) - 1
    return Pair(*(context.call(aten.select.int, both, last, place) for place in (0, 1)))


def _to_last_axis(context: Context, node: Node) -> Pair:
    pair = context.pair(node.args[0])
    return Pair(context.call(aten.stack.default, [pair.real, pair.filled(context.edit)], -1))


def _cast(context: Context, node: Node) -> Pair:
    pair, wanted = context.pair(node.args[0]), real_type(dtype_of(node))

    def cast(part: Node) -> Node:
        same = dtype_of(part) == wanted
        return part if same else context.call(aten._to_copy.default, part, dtype=wanted)

    if pair.imaginary is None:
        return Pair(cast(pair.real))
    if wanted == torch.bool:  # what is not zero in either part
        parts = (cast(pair.real), cast(pair.imaginary))
        return Pair(context.call(aten.logical_or.default, *parts))
    if not is_complex(node):
        return Pair(cast(pair.real))
    return Pair(cast(pair.real), cast(pair.imaginary))


def _quotient(context: Context, node: Node) -> Pair:
    above, below = map(context.pair, node.args[:2])
    if below.imaginary is not None:
        return product(context.edit, aten.mul.Tensor, above, _inverse(context, below))
    parts = (above.real, above.filled(context.edit))
    return Pair(*(context.call(aten.div.Tensor, part, below.real) for part in parts))


def _reciprocal(context: Context, node: Node) -> Pair:
    return _inverse(context, context.pair(node.args[0]))


def _inverse(context: Context, pair: Pair) -> Pair:
    """1 / (c + id), of c and d over the larger of them, so that no square overflows."""
    if not isinstance(pair.real, Node):
        found = 1 / complex(pair.real, pair.imaginary or 0.0)
        return Pair(found.real, found.imag)
    call, mul, div = context.call, aten.mul.Tensor, aten.div.Tensor
    imaginary = pair.filled(context.edit)
    sizes = [call(aten.abs.default, part) for part in (pair.real, imaginary)]
    largest = call(aten.maximum.default, *sizes)
    real, imaginary = (call(div, part, largest) for part in (pair.real, imaginary))
    square = call(aten.add.Tensor, call(mul, real, real), call(mul, imaginary, imaginary))
    whole = call(mul, square, largest)
    return Pair(call(div, real, whole), call(aten.neg.default, call(div, imaginary, whole)))


def _power(context: Context, node: Node) -> Pair | None:
    base, exponent = context.pair(node.args[0]), node.args[1]
    if not isinstance(exponent, int | float):
        return None
    if exponent != int(exponent) or not 1 <= abs(exponent) <= _LARGEST_POWER:
        size = context.call(aten.pow.Tensor_Scalar, magnitude(context.edit, base), exponent)
        angle = context.call(aten.mul.Tensor, _angle_of(context, base), exponent)
        return turned(context.edit, size, angle)
    found = base = base if exponent > 0 else _inverse(context, base)
    for _ in range(int(abs(exponent)) - 1):
        found = product(context.edit, aten.mul.Tensor, found, base)
    return found


def _square(context: Context, node: Node) -> Pair:
    pair = context.pair(node.args[0])
    return product(context.edit, aten.mul.Tensor, pair, pair)


def _einsum(context: Context, node: Node) -> Pair | None:
    equation, operands = argument(node, "equation"), argument(node, "tensors")
    if len(operands) > 2:
        return None
    first, *others = map(context.pair, operands)

    def call(*parts: Any) -> Node:
        return context.call(aten.einsum.default, equation, list(parts))

    if not others:
        return Pair(call(first.real), call(first.filled(context.edit)))
    (second,) = others
    real = call(first.real, second.real)
    crossed = []
    if second.imaginary is not None:
        crossed.append(call(first.real, second.imaginary))
    if first.imaginary is not None:
        crossed.append(call(first.imaginary, second.real))
    if len(crossed) == 2:
        both = call(first.imaginary, second.imaginary)
        real = context.call(aten.sub.Tensor, real, both)
        crossed = [context.call(aten.add.Tensor, *crossed)]
    return Pair(real, *crossed)


def _linear(context: Context, node: Node) -> Pair:
    x, weight = map(context.pair, node.args[:2])
    edit = context.edit
    parts = (weight.real, weight.imaginary)
    over = (part and context.call(aten.transpose.int, part, 0, 1) for part in parts)
    found = product(edit, aten.matmul.default, x, Pair(*over))
    if argument(node, "bias") is None:
        return found
    bias = context.pair(argument(node, "bias"))
    both = zip((found.real, found.filled(edit)), (bias.real, bias.filled(edit)), strict=True)
    return Pair(*(context.call(aten.add.Tensor, *pair) for pair in both))


def _exponential(context: Context, node: Node) -> Pair:
    pair = context.pair(node.args[0])
    return turned(
        context.edit, context.call(aten.exp.default, pair.real), pair.filled(context.edit)
    )


def _polar(context: Context, node: Node) -> Pair:
    return turned(context.edit, operand(node, "abs"), operand(node, "angle"))


def _angle_of(context: Context, pair: Pair) -> Node:
    return context.call(aten.atan2.default, pair.filled(context.edit), pair.real)


def _logarithm(context: Context, node: Node) -> Pair:
    pair = context.pair(node.args[0])
    size = magnitude(context.edit, pair)
    return Pair(context.call(aten.log.default, size), _angle_of(context, pair))


def _equal(context: Context, node: Node) -> Pair:
    one, other = map(context.pair, node.args[:2])
    edit, same = context.edit, operator_name(node) == "aten.eq"
    target = node.target
    found = [
        context.call(target, one.real, other.real),
        context.call(target, one.filled(edit), other.filled(edit)),
    ]
    return Pair(context.call((aten.logical_and if same else aten.logical_or).default, *found))


def _sign(context: Context, node: Node) -> Pair:
    pair = context.pair(node.args[0])
    size = magnitude(context.edit, pair)
    zero = context.call(aten.eq.Scalar, size, 0.0)
    safe = context.call(aten.masked_fill.Scalar, size, zero, math.inf)
    parts = (pair.real, pair.filled(context.edit))
    return Pair(*(context.call(aten.div.Tensor, part, safe) for part in parts))


_Rule = Callable[[Context, Node], Pair | None]
_RULES: Final[dict[str, _Rule]] = {
    "complex": _complex,
    "view_as_complex": _of_last_axis,
    "view_as_real": _to_last_axis,
    "polar": _polar,
    "real": lambda context, node: Pair(context.pair(node.args[0]).real),
    "imag": lambda context, node: Pair(context.pair(node.args[0]).filled(context.edit)),
    "abs": lambda context, node: Pair(magnitude(context.edit, context.pair(node.args[0]))),
    "angle": lambda context, node: Pair(_angle_of(context, context.pair(node.args[0]))),
    "sgn": _sign,
    "_to_copy": _cast,
    "to": _cast,
    "div": _quotient,
    "reciprocal": _reciprocal,
    "pow": _power,
    "square": _square,
    "einsum": _einsum,
    "linear": _linear,
    "exp": _exponential,
    "log": _logarithm,
    "eq": _equal,
    "ne": _equal,
    "masked_fill": _filled_with,
    "constant_pad_nd": _filled_with,
    "pad": _padded,
    "fill": _covered,
    "linalg_vector_norm": _norm,
    **dict.fromkeys(("add", "sub", "rsub"), _sum),
    **dict.fromkeys(("fft_fftshift", "fft_ifftshift"), _shifted),
    **dict.fromkeys(
        ("_conj", "conj", "conj_physical", "_conj_physical"),
        lambda context, node: conjugate(context.edit, context.pair(node.args[0])),
    ),
    **dict.fromkeys(
        ("resolve_conj", "resolve_neg"), lambda context, node: context.pair(node.args[0])
    ),
}
