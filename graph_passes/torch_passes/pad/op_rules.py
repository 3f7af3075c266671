"""Gives the rule of each operator on padded rows, which keeps valid rows exact.

Rows that are computed one by one pass through. What mixes rows leaves the padding rows out: sums
take 0 for them, maxima the lowest number, softmax and attention -inf, products of matrices 0 on
both sides, means divide by the valid count. Anything else that meets a padded axis is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.stack_traces import source_line
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_tensor,
    normal_axis,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.pad.padded_rows import Padded, ValidRows, refused

Rule = Callable[[Padded, Node], None]

#: What may give an infinity or NaN of numbers that are finite.
_MAY_BE_INFINITE: Final = frozenset(
    {
        aten.div.Tensor,
        aten.reciprocal.default,
        aten.rsqrt.default,
        aten.sqrt.default,
        aten.log.default,
        aten.log2.default,
        aten.log10.default,
        aten.log1p.default,
        aten.logit.default,
        aten.acosh.default,
        aten.lgamma.default,
        aten.digamma.default,
        aten.pow.Tensor_Scalar,
        aten.pow.Tensor_Tensor,
    }
)


#: Divides in a way that ends a process where whole numbers are divided by 0.
_DIVIDES: Final = frozenset(
    {
        *(aten.div.Tensor_mode, aten.floor_divide.default, aten.remainder.Tensor),
        aten.fmod.Tensor,
    }
)
#: Of no rows at all it has an answer.
_ANSWERS_NOTHING: Final = frozenset({aten.logsumexp.default})
#: Kinds of numbers of the data, and a Python number like them.
_KINDS: Final[dict[Any, Any]] = {torch.SymInt: 1, torch.SymFloat: 1.0, torch.SymBool: True}


def pointwise(padded: Padded, node: Node) -> None:
    """Number by number: every operand that is padded must be padded alike."""
    rank = len(node.meta["val"].shape)
    args, kwargs = padded.new(node.args), padded.named(node)
    places = [at for at, part in enumerate(args) if isinstance(part, Node) and is_tensor(part)]
    met, found = aligned(padded, node, [args[at] for at in places], rank)
    for at, part in zip(places, met, strict=True):
        args[at] = part
    target, args = _of_tensors(padded, node, args)
    if target in _DIVIDES and isinstance(args[1], Node):
        args[1] = _divisor(padded, node, args[1])
    new = padded.edit.call(target, *args, **kwargs)
    if target in _MAY_BE_INFINITE:
        new = _finite(padded, new, found)
    padded.set(node, new, found)


def _of_tensors(padded: Padded, node: Node, args: list[Any]) -> tuple[Any, list[Any]]:
    """Returns the form of a call that takes a number of the data where it took a Python number.

    As a tensor it gets the type in which PyTorch's promotion has a Python number meet the others.
    """
    target: Any = node.target
    values = [part.meta.get("val") if isinstance(part, Node) else part for part in node.args]
    numbers = [at for at, one in enumerate(values) if type(one) in _KINDS and at < len(args)]
    if not numbers:
        return target, args
    dtype = torch.bool
    for one in values:
        if isinstance(one, torch.Tensor):
            dtype = torch.promote_types(dtype, one.dtype)
    for one in values:
        if type(one) in _KINDS or isinstance(one, int | float):
            number: Any = _KINDS.get(type(one), one)
            dtype = torch.result_type(torch.empty(1, dtype=dtype), number)
    wrapped = any("Tensor" not in str(target._schema.arguments[at].type) for at in numbers)
    for at, part in enumerate(args):
        if at in numbers:
            if not isinstance(part, Node):
                part = padded.constant((), part, dtype)
            args[at] = padded.edit.call(aten._to_copy.default, part, dtype=dtype)
        elif wrapped and at and isinstance(part, int | float) and not isinstance(part, bool):
            args[at] = padded.constant((), part, dtype)
    packet = getattr(aten, target._schema.name.removeprefix("aten::"))
    return packet.Tensor if wrapped else target, args


def _divisor(padded: Padded, node: Node, divisor: Node) -> Node:
    """Returns a divisor that is 1 in padding rows, and, of whole numbers, in the place of any 0.

    Dividing a whole number by 0 ends a process; the model's code does not answer there either.
    """
    valid = padded.valid(divisor)
    for axis in valid:
        divisor = padded.filled(divisor, axis, 1)
    if dtype_of(divisor).is_floating_point:
        return divisor
    edit = padded.edit
    some = edit.call(aten.ne.Scalar, divisor, 0)
    holds = edit.call(aten.all.default, some) if shape_of(divisor) else some
    padded.require(holds, "rows", "a whole number is divided by 0", source_line(node))
    found = edit.call(aten.where.self, some, divisor, padded.constant((), 1, dtype_of(divisor)))
    padded.note(found, valid)
    return found


def _finite(padded: Padded, new: Node, valid: dict[int, ValidRows]) -> Node:
    """Returns a quotient, logarithm, power or sort with 1 in its padding rows.

    Those may hold 0 where no row was copied into them, or the end that they are sorted to, and what
    is not finite there would reach valid rows through products.
    """
    padded.note(new, valid)
    if not dtype_of(new).is_floating_point:
        return new
    for axis in valid:
        new = padded.filled(new, axis, 1.0)
    return new


def aligned(
    padded: Padded, node: Node, parts: Sequence[Node], rank: int, inner: int = 0
) -> tuple[list[Node], dict[int, ValidRows]]:
    """Returns values that are broadcast together, and their padded axes; inner ones are left out.

    Rows that were chosen apart are required to be as many, and at the same places.
    """

    def place(position: int, axis: int) -> int | None:
        outer = axis + rank - len(shape_of(parts[position]))
        return outer if outer < rank - inner else None

    met, found = padded.meet(node, parts, place)
    for part in met:
        offset = rank - len(shape_of(part))
        for axis in found:
            own = padded.valid(part).get(axis - offset)
            if axis >= offset and own is None and shape_of(part)[axis - offset] != 1:
                raise refused(node, "it combines padded rows with rows of a fixed number")
    return met, found


def same_shape(padded: Padded, node: Node) -> None:
    """A call that makes a value of its first operand's shape, row by row."""
    args = padded.new(node.args)
    new = padded.edit.call(node.target, *args, **padded.named(node))
    padded.set(node, new, padded.valid(args[0]))


def last_axis(padded: Padded, node: Node) -> None:
    """A call over the last axes: linear, layer_norm, softmax along a fixed axis."""
    args = padded.new(node.args)
    rank = len(shape_of(args[0]))
    inner = len(args[1]) if isinstance(args[1], list) else 1
    if any(axis >= rank - inner for axis in padded.valid(args[0])):
        raise refused(node, "it runs over the padded rows")
    new = padded.edit.call(node.target, *args, **padded.named(node))
    padded.set(node, new, padded.valid(args[0]))


def along(fill: Callable[[torch.dtype], Any]) -> Rule:
    """Returns the rule of a call that runs along an axis and keeps it: cumsum, softmax."""

    def rule(padded: Padded, node: Node) -> None:
        args = padded.new(node.args)
        x, dim = args[0], normal_axis(argument(node, "dim"), len(shape_of(args[0])))
        valid = padded.valid(x)
        x = _barred(padded, x, dim) if fill is _lowest else padded.filled(x, dim, 0)
        new = padded.edit.call(node.target, x, *args[1:], **padded.named(node))
        if node.target is aten.log_softmax.int:  # of what is barred it is -inf
            new = _finite(padded, new, valid)
        padded.set(node, new, valid)

    return rule


def _barred(padded: Padded, x: Node, dim: int) -> Node:
    """Adds -inf to padding rows, as a bias that attention is recognised with."""
    valid = padded.valid(x).get(dim)
    if valid is None:
        return x
    return padded.edit.call(
        aten.add.Tensor, x, padded.bias(valid, len(shape_of(x)), dim, dtype_of(x))
    )


def _lowest(dtype: torch.dtype) -> Any:
    if dtype == torch.bool:
        return False
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _highest(dtype: torch.dtype) -> Any:
    if dtype == torch.bool:
        return True
    return torch.inf if dtype.is_floating_point else torch.iinfo(dtype).max


def _zero(dtype: torch.dtype) -> Any:
    return False if dtype == torch.bool else 0


def _one(dtype: torch.dtype) -> Any:
    return True if dtype == torch.bool else 1


def reduction(
    fill: Callable[[torch.dtype], Any], *, mean: bool = False, places: bool = False
) -> Rule:
    """Returns the rule of a call that reduces axes.

    Args:
        fill: What a padding row holds, by dtype.
        mean: Whether it divides by the number of rows.
        places: Whether it gives positions.
    """

    def rule(padded: Padded, node: Node) -> None:
        args = padded.new(node.args)
        x = args[0]
        rank = len(shape_of(x))
        names = {formal.name for formal in node.target._schema.arguments}  # type: ignore[union-attr]
        given = argument(node, "dim") if "dim" in names else None
        if isinstance(given, int):
            given = [given]
        dims = {normal_axis(dim, rank) for dim in given} if given else set(range(rank))
        keeps = bool(argument(node, "keepdim")) if "keepdim" in names else False
        valid = padded.valid(x)
        if "ord" in names and not argument(node, "ord") > 0:
            raise refused(node, "its order is not above 0")
        mixed = [axis for axis in valid if axis in dims]
        reads_places = places and (
            is_tensor(node) or any(user.args[1] == 1 and user.users for user in node.users)
        )
        if fill in (_lowest, _highest) and node.target not in _ANSWERS_NOTHING:
            for axis in mixed:
                padded.require_row(node, valid[axis])
        for axis in mixed:
            if reads_places and not valid[axis].is_prefix:
                raise refused(node, "it gives positions among rows that are padded inside")
            x = padded.filled(x, axis, fill(dtype_of(x)))
        if reads_places and mixed and len(dims) > 1:
            raise refused(node, "it gives positions over several axes")
        after = {
            axis if keeps else axis - sum(dim < axis for dim in dims): one
            for axis, one in valid.items()
            if axis not in dims
        }
        if mean and mixed:
            valids = [valid[axis] for axis in mixed]
            new = mean_of_rows(padded, x, sorted(dims), keeps, valids, node.meta["val"].dtype)
        else:
            new = padded.edit.call(node.target, x, *args[1:], **padded.named(node))
        padded.set(node, new, after)

    return rule


def mean_of_rows(
    padded: Padded,
    x: Node,
    dims: list[int],
    keeps: bool,
    valids: list[ValidRows],
    dtype: torch.dtype,
) -> Node:
    """Inserts a sum over the valid rows, others being 0, divided by their number."""
    total = padded.edit.call(aten.sum.dim_IntList, x, dims, keeps, dtype=dtype)
    number = how_many(padded, x, dims, valids, dtype)
    return padded.edit.call(aten.div.Tensor, total, number)


def how_many(
    padded: Padded, x: Node, dims: list[int], valids: list[ValidRows], dtype: torch.dtype
) -> Node:
    """Inserts how many valid numbers some axes hold, a scalar; ``valids`` are their rows."""
    edit = padded.edit
    number = edit.call(aten._to_copy.default, valids[0].count, dtype=dtype)
    for valid in valids[1:]:
        number = edit.call(aten.mul.Tensor, number, valid.count)
    fixed = prod(shape_of(x)[dim] for dim in dims if dim not in padded.valid(x))
    return edit.call(aten.mul.Tensor, number, fixed) if fixed != 1 else number


def ordering(padded: Padded, node: Node) -> None:
    """Sort, argsort and top-k along an axis."""
    args = padded.new(node.args)
    x = args[0]
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    valid = padded.valid(x)
    after = dict(valid)
    if dim in valid:
        if not valid[dim].is_prefix:
            raise refused(node, "it sorts rows that are padded inside")
        top = aten.topk.default is node.target
        descends = argument(node, "largest" if top else "descending")
        x = padded.filled(x, dim, (_lowest if descends else _highest)(dtype_of(x)))
        if top:
            if not isinstance(argument(node, "k"), int) or argument(node, "k") > shape_of(x)[dim]:
                raise refused(node, "it takes as many as the data says, or more than there are")
            del after[dim]
    new = padded.edit.call(node.target, x, *args[1:], **padded.named(node))
    if is_tensor(node):
        padded.set(node, new, after)
        return
    values, order = padded.edit.item(new, 0), padded.edit.item(new, 1)
    padded.note(order, after)
    padded.set(node, [_finite(padded, values, after), order])


_POINTWISE_BY_NAME: Final = (
    aten.clone.default,
    aten.contiguous.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.fill.Scalar,
    aten.fill.Tensor,
    aten.dropout.default,
)

RULES: Final[dict[object, Rule]] = {
    aten.__or__.Tensor: pointwise,
    aten.__and__.Tensor: pointwise,
    aten.__xor__.Tensor: pointwise,
    aten.copy.default: pointwise,
    aten.floor_divide.default: pointwise,
    **dict.fromkeys(_POINTWISE_BY_NAME, same_shape),
    aten.linear.default: last_axis,
    aten.layer_norm.default: last_axis,
    aten.rms_norm.default: last_axis,
    aten.softmax.int: along(_lowest),
    aten._softmax.default: along(_lowest),
    aten.log_softmax.int: along(_lowest),
    aten.cumsum.default: along(_zero),
    aten.sum.dim_IntList: reduction(_zero),
    aten.sum.default: reduction(_zero),
    aten.mean.dim: reduction(_zero, mean=True),
    aten.mean.default: reduction(_zero, mean=True),
    aten.linalg_vector_norm.default: reduction(_zero),
    aten.amax.default: reduction(_lowest),
    aten.amin.default: reduction(_highest),
    aten.max.default: reduction(_lowest),
    aten.min.default: reduction(_highest),
    aten.logsumexp.default: reduction(_lowest),
    aten.any.default: reduction(_zero),
    aten.any.dim: reduction(_zero),
    aten.all.default: reduction(_one),
    aten.all.dim: reduction(_one),
    aten.prod.dim_int: reduction(_one),
    aten.max.dim: reduction(_lowest, places=True),
    aten.min.dim: reduction(_highest, places=True),
    aten.argmax.default: reduction(_lowest, places=True),
    aten.argmin.default: reduction(_highest, places=True),
    aten.sort.default: ordering,
    aten.sort.stable: ordering,
    aten.argsort.default: ordering,
    aten.argsort.stable: ordering,
    aten.topk.default: ordering,
}
