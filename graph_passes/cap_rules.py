"""What each operator becomes when its rows are padded, so that the live ones stay exact.

Rows that are computed one by one pass through. What mixes rows leaves the dead ones out: sums take
0 for them, maxima the lowest number, softmax and attention -inf, products of matrices 0 on both
sides, means divide by the live count. Anything else that meets a padded axis is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.live_rows import Live, Padded, refused
from tokexport.graph_passes.torch_passes.calls import (
    argument,
    dtype_of,
    is_tensor,
    normal_axis,
    shape_of,
)
from tokexport.graph_passes.torch_passes.editor import aten

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
        aten.pow.Tensor_Scalar,
        aten.pow.Tensor_Tensor,
    }
)


def pointwise(padded: Padded, node: Node) -> None:
    """Number by number: every operand that is padded must be padded alike."""
    rank = len(node.meta["val"].shape)
    args, kwargs = padded.new(node.args), padded.named(node)
    places = [at for at, part in enumerate(args) if isinstance(part, Node) and is_tensor(part)]
    met, found = aligned(padded, node, [args[at] for at in places], rank)
    for at, part in zip(places, met, strict=True):
        args[at] = part
    target, args = _of_tensors(padded, node, args)
    new = padded.edit.call(target, *args, **kwargs)
    if target in _MAY_BE_INFINITE:
        new = _finite(padded, new, found)
    padded.set(node, new, found)


def _of_tensors(padded: Padded, node: Node, args: list[Any]) -> tuple[Any, list[Any]]:
    """Returns the form of a call that takes a number of the data where it took a Python number."""
    target: Any = node.target
    formals = target._schema.arguments
    numbers = [
        at
        for at, part in enumerate(args)
        if isinstance(part, Node) and "Tensor" not in str(formals[at].type)
    ]
    if not numbers:
        return target, args
    dtype = dtype_of(args[0])
    packet = getattr(aten, target._schema.name.removeprefix("aten::"))
    for at, part in enumerate(args):
        if at in numbers:
            args[at] = padded.edit.call(aten._to_copy.default, part, dtype=dtype)
        elif at and isinstance(part, int | float) and not isinstance(part, bool):
            args[at] = padded.constant((), part, dtype)
    return packet.Tensor, args


def _finite(padded: Padded, new: Node, live: dict[int, Live]) -> Node:
    """Returns a quotient, logarithm or power with 1 in its dead rows.

    Those may hold 0 where no row was copied into them, and what is not finite there would reach
    live rows through products.
    """
    if not dtype_of(new).is_floating_point:
        return new
    padded.note(new, live)
    for axis in live:
        new = padded.filled(new, axis, 1.0)
    return new


def aligned(
    padded: Padded, node: Node, parts: Sequence[Node], rank: int, inner: int = 0
) -> tuple[list[Node], dict[int, Live]]:
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
            own = padded.live(part).get(axis - offset)
            if axis >= offset and own is None and shape_of(part)[axis - offset] != 1:
                raise refused(node, "it combines padded rows with rows of a fixed number")
    return met, found


def same_shape(padded: Padded, node: Node) -> None:
    """A call that makes a value of its first operand's shape, row by row."""
    args = padded.new(node.args)
    new = padded.edit.call(node.target, *args, **padded.named(node))
    padded.set(node, new, padded.live(args[0]))


def last_axis(padded: Padded, node: Node) -> None:
    """A call over the last axes: linear, layer_norm, softmax along a fixed axis."""
    args = padded.new(node.args)
    rank = len(shape_of(args[0]))
    inner = len(args[1]) if isinstance(args[1], list) else 1
    if any(axis >= rank - inner for axis in padded.live(args[0])):
        raise refused(node, "it runs over the padded rows")
    new = padded.edit.call(node.target, *args, **padded.named(node))
    padded.set(node, new, padded.live(args[0]))


def along(fill: Callable[[torch.dtype], Any]) -> Rule:
    """Returns the rule of a call that runs along an axis and keeps it: cumsum, softmax."""

    def rule(padded: Padded, node: Node) -> None:
        args = padded.new(node.args)
        x, dim = args[0], normal_axis(argument(node, "dim"), len(shape_of(args[0])))
        live = padded.live(x)
        x = _barred(padded, x, dim) if fill is _lowest else padded.filled(x, dim, 0)
        padded.set(node, padded.edit.call(node.target, x, *args[1:], **padded.named(node)), live)

    return rule


def _barred(padded: Padded, x: Node, dim: int) -> Node:
    """Adds -inf to dead rows, as a bias that attention is recognised with."""
    live = padded.live(x).get(dim)
    if live is None:
        return x
    return padded.edit.call(
        aten.add.Tensor, x, padded.bias(live, len(shape_of(x)), dim, dtype_of(x))
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
        fill: What a dead row holds, by dtype.
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
        live = padded.live(x)
        if "ord" in names and not argument(node, "ord") > 0:
            raise refused(node, "its order is not above 0")
        mixed = [axis for axis in live if axis in dims]
        reads_places = places and (
            is_tensor(node) or any(user.args[1] == 1 and user.users for user in node.users)
        )
        for axis in mixed:
            if reads_places and not live[axis].front:
                raise refused(node, "it gives positions among rows that are padded inside")
            x = padded.filled(x, axis, fill(dtype_of(x)))
        if reads_places and mixed and len(dims) > 1:
            raise refused(node, "it gives positions over several axes")
        after = {
            axis if keeps else axis - sum(dim < axis for dim in dims): one
            for axis, one in live.items()
            if axis not in dims
        }
        if mean and mixed:
            new = _mean(padded, node, x, sorted(dims), keeps, [live[axis] for axis in mixed])
        else:
            new = padded.edit.call(node.target, x, *args[1:], **padded.named(node))
        padded.set(node, new, after)

    return rule


def _mean(
    padded: Padded, node: Node, x: Node, dims: list[int], keeps: bool, lives: list[Live]
) -> Node:
    """Inserts a sum over the live rows divided by their number."""
    edit = padded.edit
    dtype = node.meta["val"].dtype
    total = edit.call(aten.sum.dim_IntList, x, dims, keeps, dtype=dtype)
    fixed = prod(shape_of(x)[dim] for dim in dims if dim not in padded.live(x))
    number = edit.call(aten._to_copy.default, lives[0].count, dtype=dtype)
    for live in lives[1:]:
        number = edit.call(aten.mul.Tensor, number, live.count)
    if fixed != 1:
        number = edit.call(aten.mul.Tensor, number, fixed)
    return edit.call(aten.div.Tensor, total, number)


def ordering(padded: Padded, node: Node) -> None:
    """Sort, argsort and top-k along an axis."""
    args = padded.new(node.args)
    x = args[0]
    dim = normal_axis(argument(node, "dim"), len(shape_of(x)))
    live = padded.live(x)
    after = dict(live)
    if dim in live:
        if not live[dim].front:
            raise refused(node, "it sorts rows that are padded inside")
        top = aten.topk.default is node.target
        descends = argument(node, "largest" if top else "descending")
        x = padded.filled(x, dim, (_lowest if descends else _highest)(dtype_of(x)))
        if top:
            if not isinstance(argument(node, "k"), int) or argument(node, "k") > shape_of(x)[dim]:
                raise refused(node, "it takes as many as the data says, or more than there are")
            del after[dim]
    new = padded.edit.call(node.target, x, *args[1:], **padded.named(node))
    padded.set(node, new, after)


def matmul(padded: Padded, node: Node) -> None:
    """A product of matrices; dead rows that it sums over count as 0."""
    a, b = padded.new(node.args)
    ranks = len(shape_of(a)), len(shape_of(b))
    if min(ranks) < 2:
        raise refused(node, "one of its factors is a vector")
    one, other = padded.live(a).get(ranks[0] - 1), padded.live(b).get(ranks[1] - 2)
    if (one is None) is not (other is None):
        raise refused(node, "it sums over rows that were chosen differently")
    if one is not None and other is not None:
        both = padded.agree(node, one, other)
        a, b = padded.narrowed(a, ranks[0] - 1, both), padded.narrowed(b, ranks[1] - 2, both)
    rank = max(ranks)
    (a, b), found = aligned(padded, node, (a, b), rank, inner=2)
    for part, own, axis, place in ((a, ranks[0], -2, rank - 2), (b, ranks[1], -1, rank - 1)):
        live = padded.live(part).get(own + axis)
        if live is not None:
            found[place] = live
    a, b = padded.filled(a, ranks[0] - 1, 0.0), padded.filled(b, ranks[1] - 2, 0.0)
    padded.set(node, padded.edit.call(node.target, a, b), found)


def einsum(padded: Padded, node: Node) -> None:
    """A sum of products; dead rows of a letter that is summed over count as 0."""
    equation = argument(node, "equation").replace(" ", "")
    parts: list[Node] = padded.new(argument(node, "tensors"))
    terms, arrow, result = equation.partition("->")
    letters = terms.split(",")
    if not arrow or "." in equation or any(len(set(term)) < len(term) for term in letters):
        raise refused(node, "its equation is implicit, has dots or takes a diagonal")
    parts, found = padded.meet(node, parts, lambda at, axis: letters[at][axis])
    for term, part in zip(letters, parts, strict=True):
        if any(letter in found and a not in padded.live(part) for a, letter in enumerate(term)):
            raise refused(node, "it combines padded rows with rows of a fixed number")
    filled = []
    for term, part in zip(letters, parts, strict=True):
        for axis, letter in enumerate(term):
            if letter not in result:
                part = padded.filled(part, axis, 0.0)
        filled.append(part)
    after = {a: found[letter] for a, letter in enumerate(result) if letter in found}
    padded.set(node, padded.edit.call(node.target, equation, filled), after)


def attention(padded: Padded, node: Node) -> None:
    """Fused attention; dead keys get the bias -inf, dead values count as 0."""
    q, k, v = (padded.new(argument(node, name)) for name in ("query", "key", "value"))
    rank = len(shape_of(q))
    (k, v), rows = padded.meet(node, (k, v), lambda _, axis: axis)
    live = rows.get(rank - 2)
    if padded.live(k) != padded.live(v) or argument(node, "is_causal"):
        raise refused(node, "its keys and values are padded differently, or it is causal")
    if any(axis != rank - 2 for part in (q, k, v) for axis in padded.live(part)):
        raise refused(node, "it has padded rows on another axis than the tokens")
    given = padded.new(argument(node, "attn_mask"))
    edit = padded.edit
    if isinstance(given, Node):
        wanted = {
            len(shape_of(given)) - 1: live,
            len(shape_of(given)) - 2: padded.live(q).get(rank - 2),
        }
        if any(wanted.get(axis) is not one for axis, one in padded.live(given).items()):
            raise refused(node, "its mask is padded differently")
    if live is not None:
        bias = padded.bias(live, rank, rank - 1, dtype_of(q))
        if isinstance(given, Node) and dtype_of(given) == torch.bool:
            zero = padded.constant((), 0.0, dtype_of(q))
            low = padded.constant((), -torch.inf, dtype_of(q))
            given = edit.call(aten.where.self, given, zero, low)
        given = bias if given is None else edit.call(aten.add.Tensor, given, bias)
        v = padded.filled(v, rank - 2, 0.0)
    kwargs = {name: argument(node, name) for name in ("scale", "enable_gqa")}
    new = edit.call(node.target, q, k, v, given, 0.0, False, **kwargs)
    padded.set(node, new, {a: one for a, one in padded.live(q).items() if a == rank - 2})


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
    aten.matmul.default: matmul,
    aten.bmm.default: matmul,
    aten.mm.default: matmul,
    aten.einsum.default: einsum,
    aten.scaled_dot_product_attention.default: attention,
}
