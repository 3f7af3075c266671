"""What functions of torch make of distinct positions and of masks with a certain count.

Each rule takes what its function takes, a way to ask what is known of a tensor, and returns what is
known of the result: a fact, a fact by place among several results, or None for nothing. What a rule
does not understand is nothing known, so that what follows is left to the tracer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final

import torch
from torch import Tensor

from tokexport.exporter.index_sets import Mask, Order, Positions, in_one_order, known_mask


@dataclass(frozen=True)
class Constant:
    """A tensor all of whose numbers are one that is known."""

    value: float


@dataclass(frozen=True)
class OneHot:
    """One-hot rows (…, k, n) of distinct positions."""

    positions: Positions
    size: int


Fact = Positions | Mask | Constant | OneHot
Known = Callable[[Any], Fact | None]
Found = Fact | Mapping[int, Fact] | None
#: A rule: asks with its first argument what is known of a tensor, and takes the function's own.
Rule = Callable[..., Found]


def along(fact: Fact | None, tensor: Any, dim: int) -> Mask | None:
    """Returns what is known of a tensor as a mask along an axis."""
    if isinstance(fact, Constant) and fact.value in (0, 1):
        return known_mask(dim, [bool(fact.value)] * tensor.shape[dim])
    return fact if isinstance(fact, Mask) and fact.dim == dim else None


def _axis(tensor: Tensor, dim: int) -> int:
    return dim % max(tensor.dim(), 1)


def topk(known: Known, input: Tensor, k: int, dim: int = -1, *rest: Any, **options: Any) -> Found:
    """The positions of the k largest or smallest: distinct ones."""
    dim = _axis(input, dim)
    size = input.shape[dim]
    return {1: Positions(dim, Order(size), tuple(range(k)))}


def _permutation(known: Known, input: Tensor, dim: int) -> Positions | None:
    dim = _axis(input, dim)
    if not input.dim() or not isinstance(input.shape[dim], int):
        return None
    order = Order(input.shape[dim])
    own = known(input)
    natural = tuple(range(order.size))
    if isinstance(own, Positions) and own.dim == dim and own.ranks == natural and not own.offset:
        order.set_inverse(own.order)
    return Positions(dim, order, natural)


def argsort(known: Known, input: Tensor, dim: Any = -1, *rest: Any, **options: Any) -> Found:
    """A permutation of all positions; that of a permutation is its inverse."""
    if isinstance(dim, bool):  # argsort(stable, dim, descending)
        return None
    return _permutation(known, input, dim)


def sort(known: Known, input: Tensor, dim: Any = -1, *rest: Any, **options: Any) -> Found:
    """The permutation, and of distinct positions the same ones in another order."""
    if isinstance(dim, bool):
        return None
    permutation, own = _permutation(known, input, dim), known(input)
    found: dict[int, Fact] = {} if permutation is None else {1: permutation}
    if isinstance(own, Positions) and own.dim == _axis(input, dim):
        found[0] = own.rearranged(object())
    return found


def arange(known: Known, *args: Any, **options: Any) -> Found:
    """Positions that are known."""
    if not 1 <= len(args) <= 2 or not all(isinstance(each, int) for each in args):
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
    value, dim = options.pop("value", src), _axis(input, dim)
    if isinstance(value, Tensor):
        fact = known(value)
        value = fact.value if isinstance(fact, Constant) else None
    places = known(index)
    lead = [size for axis, size in enumerate(index.shape) if axis != dim]
    whole = [size for axis, size in enumerate(input.shape) if axis != dim]
    if options or value not in (0, 1) or lead != whole or not isinstance(places, Positions):
        return None
    if places.dim != dim:
        return None
    return _set(along(known(input), input, dim), places.mask(input.shape[dim]), bool(value))


def _set(mask: Mask | None, places: Mask | None, true: bool) -> Found:
    """Returns a mask with some places set."""
    if mask is None or places is None:
        return None
    return _joined(mask, places, (lambda a, b: a or b) if true else (lambda a, b: a and not b))


def _joined(one: Mask, other: Mask, function: Callable[[Any, Any], Any]) -> Mask | None:
    """Returns the mask that a function of two makes; None where it is no mask, or unknown."""
    common = in_one_order(one, other)
    if common is None:
        return None
    order, first, second = common
    values = [function(int(rank in first), int(rank in second)) for rank in range(order.size)]
    if any(value not in (0, 1) for value in values):
        return None
    ranks = frozenset(rank for rank, value in enumerate(values) if value)
    return Mask(one.dim, order, ranks, one.repeats & other.repeats)


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
    cut = _slices(keys, input)
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


def _slices(keys: Sequence[Any], tensor: Tensor) -> list[slice | int] | None:
    """Returns a slice or a number for every axis; None where something else is there."""
    if not all(isinstance(each, slice | int) or each is Ellipsis for each in keys):
        return None
    if any(isinstance(each, bool) for each in keys):
        return None
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        wide = [slice(None)] * (tensor.dim() - len(keys) + 1)
        keys = [*keys[:at], *wide, *keys[at + 1 :]]
    numbers = [
        end
        for each in keys
        if isinstance(each, slice)
        for end in (each.start, each.stop, each.step)
    ]
    if len(keys) > tensor.dim() or not all(n is None or isinstance(n, int) for n in numbers):
        return None
    return [*keys, *[slice(None)] * (tensor.dim() - len(keys))]


def getitem(known: Known, input: Tensor, key: Any) -> Found:
    """Parts along the axis, and single rows."""
    fact = known(input)
    keys = key if isinstance(key, tuple) else (key,)
    if isinstance(fact, Constant):
        plain = all(each is None or isinstance(each, slice | int) or each is ... for each in keys)
        return fact if plain else None
    if not isinstance(fact, Positions | Mask):
        return None
    if sum(each is None for each in keys) == 1:
        return _with_new_axis(known, input, keys)
    cut = _slices(keys, input)
    if cut is None:
        return None
    for axis, part in enumerate(cut):
        if axis != fact.dim and part != slice(None) and not isinstance(part, int):
            rows = range(input.shape[axis])[part]
            if isinstance(fact, Mask) and axis in fact.repeats and len(rows):
                continue
            if not len(rows):
                return None
    part = cut[fact.dim]
    if isinstance(part, int):
        return None
    found = _cut(fact, input.shape[fact.dim], part)
    gone = [axis for axis, each in enumerate(cut) if isinstance(each, int)]
    return None if found is None else _without_axes(found, gone)


def _with_new_axis(known: Known, input: Tensor, keys: Sequence[Any]) -> Found:
    """Rules ``x[:, None]`` and the like, whose other parts take all."""
    rest = [each for each in keys if each is not None]
    cut = _slices(rest, input)
    if cut is None or any(part != slice(None) for part in cut):
        return None
    at = next(place for place, each in enumerate(keys) if each is None)
    if Ellipsis in keys[:at]:
        at += input.dim() - len(rest)
    return unsqueeze(known, input, at)


def _cut(fact: Positions | Mask, size: int, part: slice) -> Positions | Mask | None:
    if part == slice(None):
        return fact
    if isinstance(fact, Positions):
        return fact.picked(fact.ranks[part])
    places = range(size)[part]
    if places.step != 1:
        return None
    return fact.cut(places.start, size - places.stop) if len(places) else None


def _without_axes(fact: Positions | Mask, gone: Iterable[int]) -> Positions | Mask:
    """Returns what is known once some axes are gone."""
    gone = set(gone)

    def place(axis: int) -> int:
        return axis - sum(one < axis for one in gone)

    if isinstance(fact, Positions):
        return replace(fact, dim=place(fact.dim))
    repeats = frozenset(place(axis) for axis in fact.repeats - gone)
    return replace(fact, dim=place(fact.dim), repeats=repeats)


def _with_axis(fact: Positions | Mask, at: int) -> Positions | Mask:
    """Returns what is known once there is one more axis of size 1."""
    dim = fact.dim + (at <= fact.dim)
    if isinstance(fact, Positions):
        return replace(fact, dim=dim)
    repeats = frozenset({axis + (at <= axis) for axis in fact.repeats} | {at})
    return replace(fact, dim=dim, repeats=repeats)


def unsqueeze(known: Known, input: Tensor, dim: int) -> Found:
    """The same with one more axis."""
    fact = known(input)
    at = dim % (input.dim() + 1)
    return _with_axis(fact, at) if isinstance(fact, Positions | Mask) else fact


def squeeze(known: Known, input: Tensor, dim: int) -> Found:
    """The same without an axis of size 1."""
    fact, at = known(input), _axis(input, dim)
    if not isinstance(fact, Positions | Mask) or input.shape[at] != 1 or at == fact.dim:
        return fact if isinstance(fact, Constant) else None
    return _without_axes(fact, [at])


def expand(known: Known, input: Tensor, *sizes: Any) -> Found:
    """The same for every index of an axis of size 1."""
    fact = known(input)
    if isinstance(fact, Constant):
        return fact
    wide = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    new = len(wide) - input.dim()
    if not isinstance(fact, Positions | Mask) or not all(isinstance(each, int) for each in wide):
        return None
    for _ in range(new):
        fact = _with_axis(fact, 0)
    own = [*[1] * new, *input.shape]
    spread = {axis for axis, (a, b) in enumerate(zip(own, wide, strict=True)) if b not in (a, -1)}
    if fact.dim in spread:
        return None
    return replace(fact, repeats=fact.repeats | spread) if isinstance(fact, Mask) else fact


def expand_as(known: Known, input: Tensor, other: Tensor) -> Found:
    """The same for every index of an axis of size 1."""
    return expand(known, input, tuple(other.shape))


def view(known: Known, input: Tensor, *sizes: Any) -> Found:
    """The same where only axes of size 1 come and go."""
    fact = known(input)
    if isinstance(fact, Constant):
        return fact if not any(isinstance(each, torch.dtype) for each in sizes) else None
    wide = list(sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes)
    if not isinstance(fact, Positions | Mask) or not all(isinstance(each, int) for each in wide):
        return None
    if -1 in wide:
        rest = -prod(wide)
        wide[wide.index(-1)] = input.numel() // rest if rest else 0
    if [size for size in wide if size != 1] != [size for size in input.shape if size != 1]:
        return None
    if input.shape[fact.dim] == 1:
        return None
    gone = [axis for axis, size in enumerate(input.shape) if size == 1]
    fact = _without_axes(fact, gone)
    for axis, size in enumerate(wide):
        if size == 1:
            fact = _with_axis(fact, axis)
    return fact


def narrow(known: Known, input: Tensor, dim: int, start: Any, length: Any) -> Found:
    """A part along the axis."""
    keys = [slice(None)] * _axis(input, dim) + [slice(start, start + length)]
    return getitem(known, input, tuple(keys))


def unbind(known: Known, input: Tensor, dim: int = 0) -> Found:
    """Single rows."""
    fact, at = known(input), _axis(input, dim)
    if isinstance(fact, Constant):
        return dict.fromkeys(range(input.shape[at]), fact)
    if not isinstance(fact, Positions | Mask) or at == fact.dim:
        return None
    return dict.fromkeys(range(input.shape[at]), _without_axes(fact, [at]))


def split(known: Known, input: Tensor, split_size: Any, dim: int = 0) -> Found:
    """Parts along the axis."""
    at, found, start = _axis(input, dim), dict[int, Fact](), 0
    size = input.shape[at]
    if isinstance(split_size, int):
        sizes = [split_size] * -(-size // split_size)
    elif all(isinstance(each, int) for each in split_size):
        sizes = list(split_size)
    else:
        return None
    for place, length in enumerate(sizes):
        part = narrow(known, input, at, start, min(length, size - start))
        if isinstance(part, Positions | Mask | Constant):
            found[place] = part
        start += length
    return found


def cat(known: Known, tensors: Sequence[Tensor], dim: int = 0, **options: Any) -> Found:
    """A mask between known ones, or positions beside others that are known."""
    dim = _axis(tensors[0], options.pop("axis", dim))
    facts = [known(each) for each in tensors]
    if any(isinstance(fact, Positions) for fact in facts):
        return _cat_positions(tensors, facts, dim)
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
    """Positions that the data decides and others that are known, apart from all of those."""
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
    """Positions of positions, and a mask in another order."""
    fact, places, at = known(input), known(index), _axis(input, dim)
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
    """One-hot rows of distinct positions."""
    fact = known(input)
    if not isinstance(fact, Positions) or fact.dim != input.dim() - 1 or num_classes < 1:
        return None
    return OneHot(fact, num_classes)


def total(known: Known, input: Tensor, dim: Any = None, *rest: Any, **options: Any) -> Found:
    """The count of a mask, and the mask that one-hot rows make together."""
    fact = known(input)
    if isinstance(fact, OneHot) and isinstance(dim, int):
        at = _axis(input, dim)
        return fact.positions.mask(fact.size) if at == fact.positions.dim else None
    if isinstance(dim, list | tuple):
        if len(dim) != 1:
            return None
        (dim,) = dim
    if isinstance(fact, Constant) and fact.value in (0, 1) and isinstance(dim, int | None):
        return Constant(fact.value * (input.numel() if dim is None else input.shape[dim]))
    if not isinstance(fact, Mask):
        return None
    if dim is None:
        return Constant(fact.count * input.numel() // max(input.shape[fact.dim], 1))
    return Constant(fact.count) if _axis(input, dim) == fact.dim else None


def some(known: Known, input: Tensor, dim: Any = None, *rest: Any, **options: Any) -> Found:
    """Whether any of a mask is true; of one-hot rows, the mask that they make together."""
    fact = known(input)
    if isinstance(fact, OneHot):
        return total(known, input, dim)
    counted = total(known, input, dim)
    return Constant(counted.value > 0) if isinstance(counted, Constant) else None


def every(known: Known, input: Tensor, dim: Any = None, *rest: Any, **options: Any) -> Found:
    """Whether all of a mask are true."""
    counted = total(known, input, dim)
    if not isinstance(counted, Constant) or not isinstance(dim, int | None):
        return None
    return Constant(counted.value == (input.numel() if dim is None else input.shape[dim]))


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


def two(function: Callable[[Any, Any], Any]) -> Rule:
    """Returns the rule of a function of two numbers."""

    def rule(known: Known, input: Any, other: Any, **options: Any) -> Found:
        if options:
            return None
        facts = [known(each) if isinstance(each, Tensor) else each for each in (input, other)]
        if any(fact is None for fact in facts):
            return None
        return _of_two(function, (input, other), facts)

    return rule


def _of_two(function: Callable[[Any, Any], Any], given: Any, facts: Sequence[Any]) -> Found:
    plain = [f.value if isinstance(f, Constant) else f for f in facts]
    numbers = [isinstance(each, bool | int | float) for each in plain]
    if all(numbers):
        return Constant(function(*plain))
    if not any(numbers):
        one, other = facts
        if not isinstance(one, Mask) or not isinstance(other, Mask):
            return None
        return _joined(one, other, function) if given[0].shape == given[1].shape else None
    at = numbers.index(False)
    fact, number = plain[at], plain[1 - at]
    wide = given[1 - at].shape if isinstance(given[1 - at], Tensor) else ()
    if torch.broadcast_shapes(wide, given[at].shape) != given[at].shape:
        return None

    def applied(value: Any) -> Any:
        return function(value, number) if at == 0 else function(number, value)

    if isinstance(fact, Mask):
        low, high = applied(0), applied(1)
        if low not in (0, 1) or high not in (0, 1):
            return None
        if low == high:
            return Constant(low)
        return fact if high else fact.inverted()
    return _of_positions(function, fact, applied) if isinstance(fact, Positions) else None


def _of_positions(
    function: Callable[[Any, Any], Any], fact: Positions, applied: Callable[[Any], Any]
) -> Found:
    """Positions moved by a number, and the mask of a comparison of all ranks with one."""
    if function in (operator.add, operator.sub):
        moved = applied(fact.offset)
        step = applied(fact.offset + 1) - moved
        return replace(fact, offset=moved) if isinstance(moved, int) and step == 1 else None
    natural = fact.ranks == tuple(range(fact.order.size))
    if function not in COMPARISONS or not natural:
        return None
    true = frozenset(rank for rank in fact.ranks if applied(rank + fact.offset))
    return Mask(fact.dim, fact.order.inverse(), true)


def invert(known: Known, input: Tensor) -> Found:
    """The mask of all others, of truth values; of whole numbers it is something else."""
    return logical_not(known, input) if input.dtype is torch.bool else None


def logical_not(known: Known, input: Tensor) -> Found:
    """The mask of all others."""
    fact = known(input)
    if isinstance(fact, Constant):
        return Constant(not fact.value)
    return fact.inverted() if isinstance(fact, Mask) else None


COMPARISONS: Final = (
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
)

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
    "getitem": getitem,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "expand": expand,
    "expand_as": expand_as,
    **dict.fromkeys(("view", "reshape"), view),
    "narrow": narrow,
    "unbind": unbind,
    **dict.fromkeys(("split", "split_with_sizes"), split),
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    "gather": gather,
    "one_hot": one_hot,
    **dict.fromkeys(("sum", "count_nonzero"), total),
    "any": some,
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
