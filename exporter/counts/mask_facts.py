"""Gives rules for functions of torch on distinct positions and masks with a certain count.

Each rule takes a function that says what is known of a tensor, and the arguments of its own
function. It returns what is known of the result: a fact, a fact by place among several results, or
None where nothing is certain.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from tokexport.exporter.counts import mask_shapes
from tokexport.exporter.counts.index_sets import (
    Constant,
    Fact,
    Found,
    Known,
    Mask,
    OneHot,
    Order,
    Positions,
    Rule,
    joined,
    known_mask,
)
from tokexport.exporter.counts.mask_arithmetic import (
    every,
    invert,
    isin,
    logical_not,
    some,
    total,
    two,
    where,
)
from tokexport.exporter.counts.mask_shapes import axis_of, slices_of, split


def flip(known: Known, input: Tensor, *dims: Any) -> Found:
    """The same from the last to the first; the rows are others."""
    axes = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    turned = {axis_of(input, axis) for axis in axes}
    return _moved(known(input), input, turned, "flip", lambda ranks: ranks[::-1])


def roll(known: Known, input: Tensor, shifts: Any, dims: Any = ()) -> Found:
    """The same from another place on; the rows are others."""
    steps = [shifts] if isinstance(shifts, int) else [*shifts]
    axes = [dims] if isinstance(dims, int) else [*dims]
    if (
        not axes
        or len(steps) != len(axes)
        or len({axis_of(input, each) for each in axes}) < len(axes)
    ):
        return None
    by = {axis_of(input, axis): step for axis, step in zip(axes, steps, strict=True)}
    fact = known(input)
    step = by.get(fact.dim, 0) if isinstance(fact, Positions | Mask) else 0
    at = step % max(input.shape[fact.dim], 1) if isinstance(fact, Positions | Mask) else 0
    return _moved(
        fact,
        input,
        set(by),
        ("roll", *sorted(by.items())),
        lambda ranks: (*ranks[len(ranks) - at :], *ranks[: len(ranks) - at]),
    )


def _moved(
    fact: Fact | None,
    input: Tensor,
    axes: set[int],
    key: object,
    along: Callable[[tuple[Any, ...]], tuple[Any, ...]],
) -> Found:
    """Returns what is known after the entries along some axes are reordered.

    Args:
        fact: What was known.
        input: The tensor.
        axes: The axes.
        key: How they are moved.
        along: Moves what stands along the axis of the fact.
    """
    if not isinstance(fact, Positions | Mask):
        return fact if isinstance(fact, Constant) else None
    rows = axes - {fact.dim} - (fact.repeats if isinstance(fact, Mask) else frozenset())
    if rows:
        fact = replace(fact, order=fact.order.part((key, input.dim(), *sorted(rows))))
    if fact.dim not in axes:
        return fact
    if isinstance(fact, Positions):
        return fact.picked(along(fact.ranks))
    if fact.values is not None:
        return replace(known_mask(fact.dim, along(tuple(fact.values))), repeats=fact.repeats)
    return counted(fact.dim, fact.order.size, fact.count, fact.repeats)


def counted(dim: int, size: int, count: int, repeats: frozenset[int] = frozenset()) -> Mask:
    """Returns a mask of which nothing but the count is known."""
    return Mask(dim, Order(size), frozenset(range(count)), repeats)


def stack(known: Known, tensors: Sequence[Tensor], dim: int = 0) -> Found:
    """Masks of one count each, as rows of one."""
    facts = [known(each) for each in tensors]
    at = dim % (tensors[0].dim() + 1)
    first = facts[0]
    if not isinstance(first, Mask) or not _of_one_count(facts):
        return None
    return counted(first.dim + (at <= first.dim), first.order.size, first.count)


def rows_of(known: Known, tensors: Sequence[Tensor], dim: int) -> Found:
    """Masks of one count each, joined along another axis than theirs."""
    facts = [known(each) for each in tensors]
    first = facts[0]
    if not isinstance(first, Mask) or first.dim == dim or not _of_one_count(facts):
        return None
    return counted(first.dim, first.order.size, first.count)


def _of_one_count(facts: Sequence[Fact | None]) -> bool:
    return all(isinstance(each, Mask) for each in facts) and (
        len({(m.dim, m.order.size, m.count) for m in facts if isinstance(m, Mask)}) == 1
    )


def chunk(known: Known, input: Tensor, chunks: int, dim: int = 0) -> Found:
    """Parts along the axis, of one size but for the last."""
    return split(known, input, -(-input.shape[axis_of(input, dim)] // chunks), dim)


def along(fact: Fact | None, tensor: Any, dim: int) -> Mask | None:
    """Returns what is known of a tensor as a mask along an axis."""
    if isinstance(fact, Constant) and fact.value in (0, 1):
        return known_mask(dim, [bool(fact.value)] * tensor.shape[dim])
    return fact if isinstance(fact, Mask) and fact.dim == dim else None


def topk(known: Known, input: Tensor, k: int, dim: int = -1, *rest: Any, **options: Any) -> Found:
    """The positions of the k largest or smallest: distinct ones."""
    dim = axis_of(input, dim)
    size = input.shape[dim]
    return {1: Positions(dim, Order(size), tuple(range(k)))}


def _permutation(
    known: Known, input: Tensor, dim: int, rest: tuple[Any, ...], options: dict[str, Any]
) -> Positions | None:
    dim = axis_of(input, dim)
    if not input.dim() or not isinstance(input.shape[dim], int):
        return None
    order = Order(input.shape[dim])
    own = known(input)
    natural = tuple(range(order.size))
    rising = not options.get("descending") and not any(rest)
    whole = isinstance(own, Positions) and own.dim == dim and own.ranks == natural
    if rising and whole and isinstance(own, Positions) and not own.offset:
        order.set_inverse(own.order)
    return Positions(dim, order, natural)


def argsort(known: Known, input: Tensor, dim: Any = -1, *rest: Any, **options: Any) -> Found:
    """A permutation of all positions; that of a permutation is its inverse."""
    if isinstance(dim, bool):  # argsort(stable, dim, descending)
        return None
    return _permutation(known, input, dim, rest, options)


def sort(known: Known, input: Tensor, dim: Any = -1, *rest: Any, **options: Any) -> Found:
    """The permutation, and of distinct positions the same ones in another order."""
    if isinstance(dim, bool):
        return None
    permutation, own = _permutation(known, input, dim, rest, options), known(input)
    found: dict[int, Fact] = {} if permutation is None else {1: permutation}
    if isinstance(own, Positions) and own.dim == axis_of(input, dim):
        found[0] = own.rearranged(object())
    return found


def arange(known: Known, *args: Any, **options: Any) -> Found:
    """Positions that are known."""
    if not 1 <= len(args) <= 2 or not all(isinstance(each, int) for each in args):
        return None
    if not {*options} <= {"dtype", "device", "layout", "requires_grad", "pin_memory"}:
        return None
    start, end = (0, *args)[-2:]
    if start < 0 or end <= start:
        return None
    return Positions(0, Order(0).extended(end, 0), tuple(range(start, end)))


def filled(value: float) -> Rule:
    """Returns the rule of what makes a tensor of one number."""
    return lambda known, *args, **options: Constant(value)


def full(known: Known, size: Any, fill_value: Any = None, *rest: Any, **options: Any) -> Found:
    """A tensor of one number, if that is a Python number."""
    return Constant(fill_value) if isinstance(fill_value, bool | int | float) else None


def new_full(known: Known, input: Tensor, size: Any, fill_value: Any, **options: Any) -> Found:
    """A tensor of one number, if that is a Python number."""
    return full(known, size, fill_value)


def fill(known: Known, input: Tensor, value: Any) -> Found:
    """A tensor of one number, if that is a Python number."""
    return full(known, None, value)


def scatter(
    known: Known, input: Tensor, dim: int, index: Tensor, src: Any = None, **options: Any
) -> Found:
    """A mask whose values at distinct positions are set."""
    value, dim = options.pop("value", src), axis_of(input, dim)
    if isinstance(value, Tensor):
        fact = known(value)
        value = fact.value if isinstance(fact, Constant) else None
    places = known(index)
    lead = [size for axis, size in enumerate(index.shape) if axis != dim]
    whole = [size for axis, size in enumerate(input.shape) if axis != dim]
    if index.shape[dim] == 1:  # one position, whatever it is
        places = Positions(dim, Order(input.shape[dim]), (0,))
    if options or value not in (0, 1) or lead != whole or not isinstance(places, Positions):
        return None
    if places.dim != dim:
        return None
    return _set(along(known(input), input, dim), places.mask(input.shape[dim]), bool(value))


def _set(mask: Mask | None, places: Mask | None, true: bool) -> Found:
    """Returns a mask with some places set."""
    if mask is None or places is None:
        return None
    return joined(mask, places, (lambda a, b: a or b) if true else (lambda a, b: a and not b))


def masked_fill(known: Known, input: Tensor, mask: Tensor, value: Any) -> Found:
    """A mask that is set wherever another is true."""
    places = known(mask)
    if not isinstance(places, Mask) or value not in (0, 1) or mask.shape != input.shape:
        return None
    return _set(along(known(input), input, places.dim), places, bool(value))


def setitem(known: Known, input: Tensor, key: Any, value: Any) -> Found:
    """A mask that is set at known places, at distinct positions of every row, or by a mask."""
    if isinstance(value, Tensor):
        fact = known(value)
        value = fact.value if isinstance(fact, Constant) else None
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        return None
    if isinstance(key, Tensor) and key.dtype is torch.bool:
        return masked_fill(known, input, key, value)
    keys = key if isinstance(key, tuple) else (key,)
    if len(keys) == input.dim() and all(isinstance(each, Tensor) for each in keys):
        return _set_rows(known, input, keys, bool(value))
    cut = slices_of(keys, input)
    if cut is None:
        return None
    given = [axis for axis, part in enumerate(cut) if part != slice(None)]
    if len(given) != 1:
        return Constant(value) if not given else None
    (dim,) = given
    part = cut[dim]
    places = range(input.shape[dim])[part] if isinstance(part, slice) else [part]
    mask = along(known(input), input, dim)
    return (
        None
        if mask is None
        else mask.with_fixed([p % input.shape[dim] for p in places], bool(value))
    )


def _set_rows(known: Known, input: Tensor, keys: Sequence[Tensor], true: bool) -> Found:
    """A mask that is set at positions of its last axis, each row at its own."""
    places, dim = known(keys[-1]), input.dim() - 1
    if not isinstance(places, Positions) or places.dim != keys[-1].dim() - 1:
        return None
    if dim == 1:  # the rows are all there are, each once
        rows = known(keys[0])
        if not isinstance(rows, Positions) or rows.ranks != tuple(range(input.shape[0])):
            return None
        known_rows = len(rows.order.fixed) == rows.order.size and not rows.dim
        if not known_rows or keys[0].shape != (len(keys[-1]), 1) or keys[-1].dim() != 2:
            return None
    elif dim or keys[-1].dim() != 1:
        return None
    places = replace(places, dim=dim)
    return _set(along(known(input), input, dim), places.mask(input.shape[dim]), true)


def cat(known: Known, tensors: Sequence[Tensor], dim: int = 0, **options: Any) -> Found:
    """Joins a mask with known masks, or positions with known positions."""
    dim = axis_of(tensors[0], options.pop("axis", dim))
    facts = [known(each) for each in tensors]
    if any(isinstance(fact, Positions) for fact in facts):
        return _cat_positions(tensors, facts, dim)
    if isinstance(facts[0], Mask) and facts[0].dim != dim:
        return rows_of(known, tensors, dim)
    masks = [along(fact, each, dim) for fact, each in zip(facts, tensors, strict=True)]
    found: Mask | None = None
    before: list[bool] = []
    for mask in masks:
        if mask is None:
            return None
        values = mask.values
        if values is not None and found is None:
            before += values
        elif values is not None and found is not None:
            found = found.widened([], values)
        elif found is None:
            found = mask.widened(before, [])
        else:
            return None
    return known_mask(dim, before) if found is None else found


def _cat_positions(tensors: Sequence[Tensor], facts: Sequence[Fact | None], dim: int) -> Found:
    """Joins positions that the data decide with known positions that differ from all of them."""
    free = [fact for fact in facts if isinstance(fact, Positions) and fact.values is None]
    if len(free) != 1 or free[0].dim != dim:
        return None
    (own,) = free
    parts: list[Sequence[int] | None] = []
    for fact, tensor in zip(facts, tensors, strict=True):
        if fact is own:
            parts.append(None)
        elif isinstance(fact, Constant) and tensor.shape[dim] == 1:
            parts.append([int(fact.value)])
        elif isinstance(fact, Positions) and fact.values is not None and fact.dim == dim:
            parts.append(fact.values)
        else:
            return None
    if own.offset < 0:
        return None
    known = [value for part in parts if part is not None for value in part]
    after = max([0, *(value + 1 - own.offset - own.order.size for value in known)])
    order, moved = own.order.extended_with(own.ranks, own.offset, after)
    if len({*known}) < len(known) or any(value not in order.fixed for value in known):
        return None
    ranks: list[int] = []
    for part in parts:
        ranks += moved if part is None else [order.fixed[value] for value in part]
    if len({*ranks}) < len(ranks):
        return None
    return Positions(dim, order, tuple(ranks))


def gather(known: Known, input: Tensor, dim: int, index: Tensor, **options: Any) -> Found:
    """Gathers positions from positions, or a mask in another order."""
    fact, places, at = known(input), known(index), axis_of(input, dim)
    lead = [size for axis, size in enumerate(index.shape) if axis != at]
    if not isinstance(places, Positions) or places.dim != at or places.offset:
        return None
    if lead != [size for axis, size in enumerate(input.shape) if axis != at]:
        return None
    if places.order.size != input.shape[at]:
        return None
    if isinstance(fact, Positions) and fact.dim == at:
        own = frozenset(fact.ranks)
        finer = fact.order.refined(own, (fact.ranks, places.order))
        ordered = sorted(own)
        return Positions(at, finer, tuple(ordered[rank] for rank in places.ranks), fact.offset)
    mask = along(fact, input, at)
    if mask is None or not places.is_whole:
        return None
    values = mask.values
    natural = places.ranks == tuple(range(places.order.size))
    if values is not None and natural:
        ranks = frozenset(rank for rank, true in enumerate(values) if true)
        return Mask(at, places.order.inverse(), ranks)
    return Mask(at, Order(places.order.size), frozenset(range(mask.count)))


def one_hot(known: Known, input: Tensor, num_classes: int = -1) -> Found:
    """One-hot rows of distinct positions; of any numbers, rows with one that is true."""
    fact = known(input)
    if num_classes < 1:
        return None
    if not isinstance(fact, Positions) or fact.dim != input.dim() - 1:
        return counted(input.dim(), num_classes, 1)
    return OneHot(fact, num_classes, input.dim())


def scatter_add(known: Known, input: Tensor, dim: int, index: Tensor, src: Tensor) -> Found:
    """A mask of zeros to which ones are added at distinct positions."""
    fact = known(input)
    empty = isinstance(fact, Constant) and not fact.value
    return scatter(known, input, dim, index, src) if empty else None


def same(known: Known, input: Tensor, *rest: Any, **options: Any) -> Found:
    """The same values, in the same type or as whole numbers or in another precision."""
    fact = known(input)
    if not isinstance(fact, Positions):
        return fact
    named = [each for each in (*rest, *options.values()) if isinstance(each, torch.dtype)]
    return fact if all(each in (torch.int64, torch.int32) for each in named) else None


def masked_as(known: Known, input: Tensor, *rest: Any, **options: Any) -> Found:
    """The same values of zeros and ones, in another type."""
    fact = known(input)
    return fact if isinstance(fact, Mask | OneHot) else None


def truth(known: Known, input: Tensor) -> Found:
    """The truth values of zeros and ones."""
    fact = known(input)
    return Constant(bool(fact.value)) if isinstance(fact, Constant) else masked_as(known, input)


#: The rule of every function that has one, by its name.
RULES: Final[Mapping[str, Rule]] = {
    "topk": topk,
    "argsort": argsort,
    "sort": sort,
    "arange": arange,
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "zero"), filled(0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), filled(1)),
    **dict.fromkeys(("full", "full_like"), full),
    "new_full": new_full,
    "fill": fill,
    "scatter": scatter,
    "masked_fill": masked_fill,
    "setitem": setitem,
    "getitem": mask_shapes.getitem,
    "unsqueeze": mask_shapes.unsqueeze,
    "squeeze": mask_shapes.squeeze,
    "expand": mask_shapes.expand,
    "expand_as": mask_shapes.expand_as,
    **dict.fromkeys(("view", "reshape"), mask_shapes.view),
    "flatten": mask_shapes.flatten,
    "unflatten": mask_shapes.unflatten,
    **dict.fromkeys(("repeat", "tile"), mask_shapes.repeat),
    "repeat_interleave": mask_shapes.repeat_interleave,
    "ravel": mask_shapes.flatten,
    "narrow": mask_shapes.narrow,
    "unbind": mask_shapes.unbind,
    **dict.fromkeys(("split", "split_with_sizes"), mask_shapes.split),
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    "chunk": chunk,
    "flip": flip,
    "roll": roll,
    "stack": stack,
    "gather": gather,
    "take_along_dim": lambda known, input, indices, dim: gather(known, input, dim, indices),
    "one_hot": one_hot,
    "isin": isin,
    "where": where,
    "scatter_add": scatter_add,
    **dict.fromkeys(("sum", "count_nonzero"), total),
    **dict.fromkeys(("any", "amax"), some),
    "all": every,
    **dict.fromkeys(("clone", "detach", "contiguous", "to", "long", "int", "cpu"), same),
    **dict.fromkeys(("float", "double", "half", "bfloat16", "type_as"), masked_as),
    "bool": truth,
    "eq": two(operator.eq),
    "ne": two(operator.ne),
    **dict.fromkeys(("lt", "less"), two(operator.lt)),
    **dict.fromkeys(("le", "less_equal"), two(operator.le)),
    **dict.fromkeys(("gt", "greater"), two(operator.gt)),
    **dict.fromkeys(("ge", "greater_equal"), two(operator.ge)),
    **dict.fromkeys(("add", "radd"), two(operator.add)),
    **dict.fromkeys(("sub", "subtract"), two(operator.sub)),
    "rsub": two(lambda one, other: other - one),
    **dict.fromkeys(("mul", "multiply", "rmul"), two(operator.mul)),
    **dict.fromkeys(("and", "rand"), two(operator.and_)),
    **dict.fromkeys(("or", "ror"), two(operator.or_)),
    **dict.fromkeys(("xor", "rxor"), two(operator.xor)),
    "logical_and": two(lambda one, other: bool(one) and bool(other)),
    "logical_or": two(lambda one, other: bool(one) or bool(other)),
    "logical_xor": two(lambda one, other: bool(one) != bool(other)),
    "logical_not": logical_not,
    "invert": invert,
}
