"""Computes with numbers that depend on the data, and makes values of that many rows.

Before → after::

    n = sym_size(y, 1) + 1          n' = add(sum(valid), 1), a tensor of rank 0
    zeros(b, n), arange(n)          zeros(b, room), arange(room); valid = arange(room) < n'
    assert n == m                   a check: eq(n', m')
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Node

from tokexport.graph_passes.stack_traces import source_line
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    is_tensor,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.pad.padded_rows import Padded, ValidRows, refused

#: What computes one number from two, and the operator that does the same with tensors.
_PAIRS: Final = {
    operator.add: aten.add.Tensor,
    operator.sub: aten.sub.Tensor,
    operator.mul: aten.mul.Tensor,
    operator.truediv: aten.div.Tensor,
    operator.mod: aten.remainder.Tensor,
    operator.eq: aten.eq.Tensor,
    operator.ne: aten.ne.Tensor,
    operator.lt: aten.lt.Tensor,
    operator.le: aten.le.Tensor,
    operator.gt: aten.gt.Tensor,
    operator.ge: aten.ge.Tensor,
    operator.and_: aten.logical_and.default,
    operator.or_: aten.logical_or.default,
    torch.sym_max: aten.maximum.default,
    torch.sym_min: aten.minimum.default,
}
#: What a number that is at most so much becomes at most, by a factor above 0.
_SCALED: Final[dict[Any, Callable[[float, float], float]]] = {
    operator.mul: operator.mul,
    operator.truediv: operator.truediv,
    operator.floordiv: operator.floordiv,
}
#: The square root of a number, which torch has no public name for.
_ROOT: Final = getattr(torch, "_sym_sqrt", None)
#: What rounds a number to a whole one, and the operator that does the same.
_ROUNDS: Final = {
    math.trunc: aten.trunc.default,
    math.floor: aten.floor.default,
    math.ceil: aten.ceil.default,
    round: aten.round.default,
    torch.sym_int: aten.trunc.default,
}
ASSERTIONS: Final = (
    aten._assert_scalar.default,
    aten._assert_async.default,
    aten._assert_async.msg,
)
_KINDS: Final = {bool: torch.bool, int: torch.int64, float: torch.float64}


def size(padded: Padded, node: Node) -> None:
    """The size of an axis."""
    source = padded.new(node.args[0])
    axis = argument(node, "dim")
    valid = padded.valid(source).get(axis)
    if valid is None:
        number = int(source.meta["val"].shape[axis])
        padded.set_exact(node.meta["val"], number)
        padded.set(node, number)
    else:
        padded.note_size(node.meta["val"], valid)
        padded.set_most(valid.count, shape_of(valid.mask)[0])
        padded.set(node, valid.count)


def item(padded: Padded, node: Node) -> None:
    """The number that a tensor of one holds."""
    source = padded.new(node.args[0])
    if padded.valid(source):
        raise refused(node, "it reads a number among padded rows")
    padded.set(node, padded.edit.view(source, []))


def number(padded: Padded, node: Node) -> None:
    """Computes a number, or checks a truth that the model takes for granted."""
    target: Any = node.target
    args = padded.new(node.args)
    if is_call(node, *ASSERTIONS):
        _assert(padded, node, args[0])
        return
    if not any(isinstance(part, Node) for part in args):
        known = None not in args and not hasattr(target, "_schema")
        padded.set(node, target(*args) if known else None)
        return
    new = None if None in args else _computed(padded, node, args)
    if new is None and not _only_asserted(node):
        raise refused(node, "it computes with the number of tokens")
    padded.set(node, new)


def _computed(padded: Padded, node: Node, args: list[Any]) -> Node | None:
    """Inserts the computation of a number; None where there is no operator for it."""
    edit, target = padded.edit, node.target
    tensors = [_as_tensor(padded, part) for part in args]
    if target in (operator.truediv, operator.floordiv, operator.mod) and isinstance(args[1], Node):
        tensors[1] = not_zero(padded, node, tensors[1])
    if target is operator.truediv:  # a Python float, also of whole numbers
        tensors = [edit.call(aten._to_copy.default, one, dtype=torch.float64) for one in tensors]
    if target in _PAIRS or target is operator.floordiv:
        new: Node = (
            edit.call(aten.div.Tensor_mode, *tensors, rounding_mode="floor")
            if target is operator.floordiv
            else edit.call(_PAIRS[target], *tensors)
        )
        _bound(padded, target, args, new)
        return new
    if target in _ROUNDS:
        whole = edit.call(_ROUNDS[target], *tensors)
        whole = edit.call(aten._to_copy.default, whole, dtype=torch.int64)
        padded.set_most(whole, padded.most(args[0]))
        return whole
    if target is operator.pow:
        wide = [edit.call(aten._to_copy.default, one, dtype=torch.float64) for one in tensors]
        found = edit.call(aten.pow.Tensor_Tensor, *wide)
        is_whole = isinstance(node.meta["val"], torch.SymInt)
        return edit.call(aten._to_copy.default, found, dtype=torch.int64) if is_whole else found
    if target is _ROOT:
        (root,) = tensors
        return edit.call(
            aten.sqrt.default, edit.call(aten._to_copy.default, root, dtype=torch.float64)
        )
    if target in (operator.neg, operator.pos):
        one: Node = tensors[0]
        return edit.call(aten.neg.default, one) if target is operator.neg else one
    if target in (torch.sym_not, operator.not_):
        return edit.call(aten.logical_not.default, *tensors)
    if target is torch.sym_float:
        return edit.call(aten._to_copy.default, *tensors, dtype=torch.float64)
    if target is torch.sym_sum:
        parts = [_as_tensor(padded, part) for part in args[0]]
        total: Node = parts[0]
        for part in parts[1:]:
            total = edit.call(aten.add.Tensor, total, part)
        return total
    return None


def not_zero(padded: Padded, node: Node, divisor: Node) -> Node:
    """Returns a divisor of rank 0 that is 1 in place of 0, by which the model's code cannot divide.

    Division of whole numbers by 0 ends a process.
    """
    some = padded.edit.call(aten.ne.Scalar, divisor, 0)
    padded.require(some, "rows", "a number is divided by 0", source_line(node))
    one = padded.constant((), 1, dtype_of(divisor))
    return padded.edit.call(aten.where.self, some, divisor, one)


def _as_tensor(padded: Padded, part: Any) -> Any:
    if isinstance(part, Node | list):
        return part
    return padded.constant((), part, _KINDS[type(part)])


def _bound(padded: Padded, target: Any, args: list[Any], new: Node) -> None:
    """Notes what numbers computed of bounded ones are at most."""
    one, other = (padded.most(part) for part in args)
    factor = args[1] if isinstance(args[1], int | float) and args[1] > 0 else None
    if target is torch.sym_min:
        known = [each for each in (one, other) if each is not None]
        padded.set_most(new, min(known) if known else None)
    elif one is not None and target is operator.sub and isinstance(args[1], int):
        padded.set_most(new, one - args[1])
    elif one is not None and other is not None and target in (operator.add, torch.sym_max):
        padded.set_most(new, one + other if target is operator.add else max(one, other))
    elif one is not None and factor is not None and target in _SCALED:
        padded.set_most(new, math.ceil(_SCALED[target](one, factor)))


def _assert(padded: Padded, node: Node, holds: Any) -> None:
    """Checks conditions that were true while tracing, unless they hold for every count."""
    padded.set(node, None)
    if not isinstance(holds, Node) or _certain(padded, node.args[0]):
        return
    source: Any = node.args[0]
    line = source_line(node) or _line_of(source)
    if is_call(node, aten._assert_async.msg):
        padded.require(holds, "branch", str(node.args[1]), line)
    elif source.target is operator.eq:
        padded.require(holds, "rows", "rows are combined that are not as many", line)
    else:
        padded.require(holds, "branch", "a condition of the code does not hold", line)


def _certain(padded: Padded, node: Any) -> bool:
    """Returns whether a condition is one on a count that holds of all, or is checked elsewhere."""
    if not isinstance(node, Node) or is_tensor(node):
        return False
    if node.target is torch.sym_not or node.target is operator.not_:
        inner: Any = node.args[0]
        return inner.target is operator.eq and _is_count(inner.args[0]) and inner.args[1] == 0
    if node.target not in (operator.ge, operator.le, operator.ne) or len(node.args) != 2:
        return False
    count, limit = node.args
    most = padded.most(padded.new(count))
    if not isinstance(limit, int) or most is None:
        return False
    if node.target is operator.le:
        return most <= limit
    # A count is at least 0, and that there is one is checked where it is made.
    return limit <= 0 and _is_count(count)


def _is_count(node: Any) -> bool:
    """Returns whether a number counts rows, or is the largest count; a sum may be less."""
    if is_call(node, torch.sym_max):
        return any(map(_is_count, node.args))
    return is_call(node, aten.sym_size.int)


def _line_of(node: Any) -> str:
    """Returns the line of the nearest value that a number was read from."""
    while isinstance(node, Node):
        if line := source_line(node):
            return line
        node = next(iter(node.all_input_nodes), None)
    return ""


def _only_asserted(node: Node) -> bool:
    return is_call(node, *ASSERTIONS) or all(map(_only_asserted, node.users))


def rows_of(padded: Padded, node: Node, size: Any, given: Any) -> ValidRows | int:
    """Returns the rows of an axis that a call makes, or how many they are.

    Args:
        padded: The values.
        node: The call.
        size: The size of the axis, symbolic or not.
        given: The size that the call was given: a node of a number, or a number.
    """
    if isinstance(size, int):
        return size
    valid, exact = padded.of_size(size), padded.exact(size)
    if valid is not None or exact is not None:
        return valid if valid is not None else int(exact or 0)
    number = padded.new(given)
    if isinstance(number, int) and number >= 0:
        return number
    if not isinstance(number, Node) or shape_of(number):
        raise refused(node, "how many rows it makes is not known")
    valid = padded.of_number(node, number)
    padded.note_size(size, valid)
    return valid


def create(padded: Padded, node: Node) -> None:
    """Makes values of a size that depends on the data."""
    if node.target in (aten.arange.default, aten.arange.start, aten.arange.start_step):
        _arange(padded, node)
        return
    sizes: list[int] = []
    found: dict[int, ValidRows] = {}
    args = node.args[1:] if node.target in _LIKE else node.args
    shape: Any = args[0]
    for axis, (size, given) in enumerate(zip(node.meta["val"].shape, shape, strict=True)):
        rows = rows_of(padded, node, size, given)
        if isinstance(rows, ValidRows):
            found[axis] = rows
            rows = shape_of(rows.mask)[0]
        sizes.append(rows)
    rest = padded.new(args[1:])
    kwargs = padded.named(node)
    if rest and isinstance(rest[0], Node):  # full of a number that the data says
        wide = padded.edit.call(aten._to_copy.default, rest[0], dtype=node.meta["val"].dtype)
        padded.set(node, padded.edit.expand(wide, sizes), found)
        return
    like = [padded.new(node.args[0])] if node.target in _LIKE else []
    padded.set(node, padded.edit.call(node.target, *like, sizes, *rest, **kwargs), found)


def _arange(padded: Padded, node: Node) -> None:
    """Counts up to a number, from one that is known or is not."""
    edit = padded.edit
    start: Any = padded.new(argument(node, "start")) if len(node.args) > 1 else 0
    end = padded.new(argument(node, "end"))
    step = padded.new(argument(node, "step")) if len(node.args) > 2 else 1
    kwargs = padded.named(node)
    if step != 1 or isinstance(start, float) or isinstance(end, float):
        raise refused(node, "it counts in other steps than 1 up to a number that the data says")
    later = isinstance(start, Node) or start != 0
    count = edit.call(aten.sub.Tensor, end, start) if later else end
    size = node.meta["val"].shape[0]
    valid = padded.of_size(size)
    if valid is None or not valid.is_prefix:
        valid = padded.of_number(node, count) if isinstance(count, Node) else None
    if valid is None:
        raise refused(node, "how many rows it makes is not known")
    padded.note_size(size, valid)
    new = edit.call(aten.arange.default, shape_of(valid.mask)[0], **kwargs)
    if later:
        new = edit.call(aten.add.Tensor, new, start)
    padded.set(node, new, {0: valid})


def scalar(padded: Padded, node: Node) -> None:
    """A tensor of one number that the data says."""
    given = padded.new(node.args[0])
    dtype = node.meta["val"].dtype
    if isinstance(given, Node):
        padded.set(node, padded.edit.call(aten._to_copy.default, given, dtype=dtype), {})
    elif isinstance(given, int | float):
        padded.set(node, padded.constant((), given, dtype), {})
    else:
        raise refused(node, "the number it makes a tensor of is not known")


#: What makes values of the kind of another.
_LIKE: Final = (
    aten.new_full.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_empty.default,
)
NUMBER_RULES: Final[dict[object, Callable[[Padded, Node], None]]] = {
    aten.sym_size.int: size,
    aten.item.default: item,
    aten._local_scalar_dense.default: item,
    aten.scalar_tensor.default: scalar,
    aten.full.default: create,
    aten.zeros.default: create,
    aten.ones.default: create,
    aten.empty.memory_format: create,
    **dict.fromkeys(_LIKE, create),
    aten.arange.default: create,
    aten.arange.start: create,
    aten.arange.start_step: create,
}


def is_number(node: Node) -> bool:
    """Returns whether a call gives no tensor: a number, a truth, or nothing."""
    return not isinstance(node.meta.get("val"), Tensor | tuple | list)
