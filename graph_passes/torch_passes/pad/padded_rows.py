"""Records the valid rows of padded values while a graph gets fixed sizes.

A value whose axis has a length that depends on the data is held padded::

    real   (1, u, C)                    u rows, known when it runs
    padded (1, cap, C), valid (cap,)     the rows under valid, in their order, are the real ones

What padding rows hold is arbitrary and finite; no valid row may come to depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from tokexport.graph_passes.errors import TokenCountError
from tokexport.graph_passes.stack_traces import origin, source_line
from tokexport.graph_passes.torch_passes.graph.calls import dtype_of, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.random_draws import draws


@dataclass(frozen=True, eq=False)
class ValidRows:
    """Which rows of a padded axis are real.

    Attributes:
        mask: Truth values (n,).
        count: How many are true, a whole number of rank 0.
        is_prefix: Whether the real rows come first, so that a position is the same in both.
        always_valid: How many rows at the beginning are always real.
    """

    mask: Node
    count: Node
    is_prefix: bool
    always_valid: int


@dataclass(frozen=True)
class Selection:
    """A choice of rows by the data.

    Attributes:
        count: How many rows are chosen, a whole number of rank 0.
        cap: For how many there is room.
        line: The line of the user's code, or ''.
        when: Whether its path is taken, a truth value of rank 0; None for always.
    """

    count: Node
    cap: int
    line: str
    when: Node | None = None


@dataclass(frozen=True)
class Check:
    """A condition on inputs under which the padded graph agrees with the model.

    Attributes:
        holds: Whether it does, a truth value of rank 0.
        kind: ``room``, ``none``, ``rows`` or ``branch``: the kind of assumption.
        said: What an input does that breaks it, a clause.
        line: The line of the user's code, or ''.
    """

    holds: Node
    kind: str
    said: str
    line: str


class Padded:
    """The padded counterparts of a graph's values.

    Args:
        edit: The graph.
        caps: The number of rows that there is room for at each choice, in order, and the last one
            at all that follow; None allows no choice by the data.
    """

    def __init__(self, edit: Editor, caps: Sequence[int] | None) -> None:
        self.edit = edit
        self.caps = caps
        self.selections: list[Selection] = []
        self.checks: dict[tuple[Any, ...], Check] = {}
        self.memo: dict[tuple[Any, ...], Any] = {}
        self._new: dict[Node, Any] = {}
        self._valid: dict[Node, dict[int, ValidRows]] = {}
        self._first: dict[Node, Node] = {}
        self._computed: dict[tuple[Any, str, str], Node] = {}
        self._exact: dict[str, int] = {}
        self._of_size: dict[str, dict[ValidRows, None]] = {}
        self._most: dict[Node, int] = {}

    def set(self, old: Node, new: Any, valid: Mapping[int, ValidRows] | None = None) -> None:
        """Records the counterpart of a node: a padded node, a number, or a list of padded nodes."""
        self._new[old] = new
        if isinstance(new, Node) and valid is not None:
            self._valid[new] = dict(valid)
        sizes = getattr(old.meta.get("val"), "shape", ())
        for axis, one in (valid or {}).items():
            if axis < len(sizes):
                self._of_size.setdefault(str(sizes[axis]), {})[one] = None

    def first(self, node: Node) -> Node:
        """Returns the first node that computes the same by the same calls."""
        for one in self.edit.graph.nodes:
            if one not in self._first:
                self._first[one] = one
                if one.op == "call_function" and not draws(one):
                    args, kwargs = map_arg((one.args, one.kwargs), self._first.__getitem__)
                    key = (one.target, repr(args), repr(kwargs))
                    self._first[one] = self._computed.setdefault(key, one)
            if one is node:
                break
        return self._first[node]

    def note(self, new: Node, valid: Mapping[int, ValidRows]) -> None:
        """Notes the padded axes of a node that was inserted."""
        self._valid[new] = dict(valid)

    def changed(self, node: Node) -> bool:
        """Returns whether a node has a counterpart."""
        return node in self._new

    def new(self, old: Any) -> Any:
        """Returns an argument with the counterparts of its nodes."""
        if isinstance(old, Node):
            return self._new.get(old, old)
        if isinstance(old, list | tuple):
            return [self.new(part) for part in old]
        return old

    def named(self, node: Node) -> dict[str, Any]:
        """Returns the keyword arguments of a call, with every node in them replaced."""
        return {name: self.new(part) for name, part in node.kwargs.items()}

    def positions(self, new: Node) -> Node:
        """Returns positions whose padding rows are 0, which every axis has."""
        for axis in self.valid(new):
            new = self.filled(new, axis, 0)
        return new

    def valid(self, new: Any) -> dict[int, ValidRows]:
        """Returns the padded axes of a padded node."""
        return self._valid.get(new, {}) if isinstance(new, Node) else {}

    def of_size(self, size: Any) -> ValidRows | None:
        """Returns rows that an axis of that symbolic size has; None where no value has one.

        All of them have equal counts, and prefixes are the same rows.
        """
        found = self._of_size.get(str(size), {})
        return next((one for one in found if one.is_prefix), None) or (
            next(iter(found)) if len(found) == 1 else None
        )

    def note_size(self, size: Any, valid: ValidRows) -> None:
        """Notes that an axis of that symbolic size has these rows."""
        self._of_size.setdefault(str(size), {})[valid] = None

    def room_for(self, node: Node, most: int | None, times: int = 1) -> int:
        """Returns for how many rows the next choice has room.

        Args:
            node: The call that chooses.
            most: How many it could choose; None where nothing bounds it.
            times: How many images it chooses for at once.

        Raises:
            TokenCountError: No choice by the data is allowed.
        """
        if self.caps is None:
            raise TokenCountError(
                f"How many rows {node.target} gives depends on the values of the input, and a "
                "static graph cannot hold that.",
                where=origin(node),
            )
        room = self.caps[min(len(self.selections), len(self.caps) - 1)] * times
        return room if most is None else min(room, most)

    def chosen(self, node: Node, count: Node, room: int, most: int | None) -> None:
        """Notes a choice, and that it must fit into its room."""
        line = source_line(node)
        self.selections.append(Selection(count, room, line))
        self._most[count] = room
        if most is None or room < most:
            fits = self.edit.call(aten.le.Scalar, count, room)
            self.require(fits, "room", f"more than {room} rows are chosen", line)
        some = self.edit.call(aten.ge.Scalar, count, 1)
        self.require(some, "none", "no row is chosen", line)

    def require(self, holds: Node, kind: str, said: str, line: str) -> None:
        """Notes what must hold of an input; the same twice is noted once."""
        one = self.first(holds)
        self.checks.setdefault((kind, one), Check(one, kind, said, line))

    def require_row(self, node: Node, valid: ValidRows) -> None:
        """Notes that there must be a row, where a call of none has no answer."""
        if not valid.always_valid:
            some = self.edit.call(aten.ge.Scalar, valid.count, 1)
            self.require(some, "none", "no row is chosen", source_line(node))

    def most(self, number: Any) -> int | None:
        """Returns what a number of rank 0 is at most; None where that is not known."""
        return number if isinstance(number, int) else self._most.get(number)

    def set_most(self, number: Node, most: int | None) -> None:
        """Notes what a number of rank 0 is at most."""
        if most is not None:
            self._most[number] = most

    def of_number(self, node: Node, number: Node, most: int | None = None) -> ValidRows:
        """Returns the first rows of an axis, as many as a number of rank 0 says.

        Args:
            node: The call that makes the axis.
            number: How many rows it has.
            most: The most rows that it could have; None where only the number itself bounds it.
        """
        number = self.first(number)
        key = ("number", number, most)
        if key not in self.memo:
            known = self.most(number)
            bounds = [each for each in (known, most) if each is not None]
            bound = min(bounds) if bounds else None
            room = bound if known is not None and bound is not None else self.room_for(node, bound)
            count = number
            if most is not None and (known is None or known > most):
                count = self.edit.call(aten.clamp_max.default, number, most)
            mask = self.edit.call(aten.lt.Tensor, self.counted(room), count)
            if known is None:
                self.chosen(node, count, room, bound)
                count = self.edit.call(aten.clamp_max.default, count, room)
            self.memo[key] = ValidRows(mask, count, True, 0)
        found: ValidRows = self.memo[key]
        return found

    def agree(self, node: Node, one: ValidRows, other: ValidRows) -> ValidRows:
        """Returns rows that two choices have in common, which are then required to be the same.

        Raises:
            TokenCountError: Their rows lie at different places.
        """
        if one is other:
            return one
        if one.is_prefix and other.is_prefix:
            same = self.edit.call(aten.eq.Tensor, one.count, other.count)
            smaller = min(one, other, key=lambda valid: shape_of(valid.mask)[0])
        elif shape_of(one.mask) == shape_of(other.mask):
            equal = self.edit.call(aten.eq.Tensor, one.mask, other.mask)
            same, smaller = self.edit.call(aten.all.default, equal), one
        else:
            raise refused(node, "it combines rows that were chosen differently")
        if self.first(one.count) is not self.first(other.count) or not one.is_prefix:
            self.require(same, "rows", "choices that are combined differ", source_line(node))
        return smaller

    def meet(
        self, node: Node, parts: Sequence[Node], place: Callable[[int, int], Any]
    ) -> tuple[list[Node], dict[Any, ValidRows]]:
        """Returns values whose padded axes at one place have the same rows, and those rows.

        Args:
            node: The call that combines them.
            parts: The values.
            place: Says of a value's position and an axis at which place it is; None leaves it out.
        """
        found: dict[Any, ValidRows] = {}
        for position, part in enumerate(parts):
            for axis, valid in self.valid(part).items():
                key = place(position, axis)
                if key is not None:
                    found[key] = self.agree(node, found.get(key, valid), valid)
        met = []
        for position, part in enumerate(parts):
            for axis in self.valid(part):
                key = place(position, axis)
                if key is not None:
                    part = self.narrowed(part, axis, found[key])
            met.append(part)
        return met, found

    def narrowed(self, part: Node, axis: int, valid: ValidRows) -> Node:
        """Returns a value with rows in place of its own, which agree with them."""
        own = self.valid(part)
        if own[axis] is valid:
            return part
        room = shape_of(valid.mask)[0]
        found = part
        if shape_of(part)[axis] != room:
            found = self.edit.call(aten.slice.Tensor, part, axis, 0, room)
        else:
            found = self.edit.call(aten.alias.default, part)
        self._valid[found] = {**own, axis: valid}
        return found

    def set_exact(self, size: Any, number: int) -> None:
        """Notes what a symbolic size is."""
        self._exact[str(size)] = number

    def exact(self, size: Any) -> int | None:
        """Returns what a symbolic size is, where that is known."""
        return self._exact.get(str(size))

    def filled(self, new: Node, axis: int, value: float | int | bool) -> Node:
        """Returns a value with a number in its padding rows."""
        valid = self.valid(new).get(axis)
        if valid is None:
            return new
        rank = len(shape_of(new))
        mask = self.edit.view(valid.mask, [-1 if a == axis else 1 for a in range(rank)])
        other = self.constant((), value, dtype_of(new))
        result = self.edit.call(aten.where.self, mask, new, other)
        self._valid[result] = self.valid(new)
        return result

    def bias(self, valid: ValidRows, rank: int, axis: int, dtype: torch.dtype) -> Node:
        """Returns 0 for valid and -inf for padding rows, along one axis of a rank."""
        mask = self.edit.view(valid.mask, [-1 if a == axis else 1 for a in range(rank)])
        zero, low = self.constant((), 0.0, dtype), self.constant((), -torch.inf, dtype)
        return self.edit.call(aten.where.self, mask, zero, low)

    def constant(self, shape: Iterable[int], value: float | int | bool, dtype: torch.dtype) -> Node:
        """Inserts a tensor of one number."""
        device = torch.device("cpu")
        return self.edit.call(
            aten.full.default, [*shape], value, dtype=dtype, device=device, pin_memory=False
        )

    def counted(self, size: int) -> Node:
        """Inserts 0, 1, …, size - 1."""
        device = torch.device("cpu")
        return self.edit.call(aten.arange.default, size, device=device, pin_memory=False)

    def joined(self, parts: list[ValidRows | int]) -> ValidRows:
        """Returns the rows of parts laid end to end; a number stands for that many real rows."""
        key = ("joined", *parts)
        if key not in self.memo:
            self.memo[key] = self._joined(parts)
        found: ValidRows = self.memo[key]
        return found

    def _joined(self, parts: list[ValidRows | int]) -> ValidRows:
        masks, count, sure, fixed, front = [], None, 0, 0, True
        still = True
        for position, part in enumerate(parts):
            if isinstance(part, int):
                masks.append(self.constant((part,), True, torch.bool))
                fixed += part
                sure += part if still else 0
                continue
            masks.append(part.mask)
            front &= part.is_prefix and position == len(parts) - 1
            sure += part.always_valid if still else 0
            still = False
            count = (
                part.count if count is None else self.edit.call(aten.add.Tensor, count, part.count)
            )
        count = self.edit.call(aten.add.Tensor, count, fixed) if fixed else count
        assert count is not None
        mask = self.edit.call(aten.cat.default, masks, 0)
        return ValidRows(mask, count, front, sure)

    def cut(self, valid: ValidRows, start: int, step: int = 1) -> ValidRows:
        """Returns the rows at a step, without the first few, which are always real or first."""
        key = ("cut", valid, start, step)
        if key not in self.memo:
            end = shape_of(valid.mask)[0]
            mask = self.edit.call(aten.slice.Tensor, valid.mask, 0, start, end, step)
            count = self.edit.call(aten.sum.default, mask)
            sure = len(range(start, valid.always_valid, step))
            self.memo[key] = ValidRows(mask, count, valid.is_prefix, sure)
        found: ValidRows = self.memo[key]
        return found


def refused(node: Node, why: str) -> TokenCountError:
    """Returns the error for a call that cannot be made exact on padded rows."""
    return TokenCountError(
        f"The operator {node.target} cannot be padded to a fixed number of tokens exactly: {why}.",
        where=origin(node),
    )
