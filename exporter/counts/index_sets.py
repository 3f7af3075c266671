"""Counts the true values of masks that are made from distinct positions.

An ``Order`` is some permutation of n positions, one for each row of a batch: the data decide which;
the operator that made it assures that no position is in it twice. A mask that is true at the
positions of some of its ranks has as many true values in every row as these ranks, and masks of one
order are joined, cut and inverted by the sets of their ranks::

    topk(scores, k).indices          the ranks 0 … k - 1 of a new order
    argsort(scores)[:, a:b]          the ranks a … b - 1 of it
    zeros.scatter(1, index, True)    a mask of the ranks of the index
    ~mask, one & other, one | other  the complement, the intersection, the union of ranks
    cat([ones(B, 1), mask], 1)       the order with one more position, which has a rank of its own

A choice among what was chosen refines an order: those of its ranks stand in another order from
then on, and masks that have all of them, or none, are masks of the refined order too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Ranks = frozenset[int]


class Order:
    """A permutation of positions that the data decides, one for each row.

    Args:
        size: How many positions it has.
        base: The order that it refines; None for none.
        moved: The ranks of ``base`` that stand in another order in it.

    Attributes:
        fixed: The rank of every position that has the same one in every row.
        inner: What it extends, and by how many positions before and after; None for nothing.
    """

    def __init__(self, size: int, base: Order | None = None, moved: Ranks = frozenset()) -> None:
        self.size = size
        self.base, self.moved = base, moved
        fixed: dict[int, int] = base.fixed if base is not None else {}
        self.fixed: dict[int, int] = {
            place: rank for place, rank in fixed.items() if rank not in moved
        }
        self.inner: tuple[Order, int, int] | None = None
        self._made: dict[Any, Order] = {}

    def refined(self, moved: Ranks, by: object) -> Order:
        """Returns the order in which ``by`` rearranges some ranks; the same for the same ``by``."""
        key = "refined", moved, by
        if key not in self._made:
            self._made[key] = Order(self.size, self, moved)
        return self._made[key]

    def extended(self, before: int, after: int) -> Order:
        """Returns the order with fixed positions before and after its own.

        Their ranks follow those of the others.
        """
        if not before and not after:
            return self
        if self.inner is not None:
            order, own_before, own_after = self.inner
            return order.extended(own_before + before, own_after + after)
        key = "extended", before, after
        if key not in self._made:
            base = self.base
            if base is not None and not base.fixed:
                made = Order(self.size + before + after, base.extended(before, after), self.moved)
            else:
                made = Order(self.size + before + after)
            made.fixed = {position + before: rank for position, rank in self.fixed.items()}
            outside = [*range(before), *range(before + self.size, made.size)]
            made.fixed |= {place: self.size + i for i, place in enumerate(outside)}
            made.inner = self, before, after
            self._made[key] = made
        return self._made[key]

    def extended_with(
        self, ranks: Iterable[int], before: int, after: int
    ) -> tuple[Order, list[int]]:
        """Returns the extended order, and what some ranks are in it."""
        order = self.extended(before, after)
        place_of = {rank: place for place, rank in self.fixed.items()}
        return order, [
            order.fixed[place_of[rank] + before] if rank in place_of else rank for rank in ranks
        ]

    def inverse(self) -> Order:
        """Returns the order of which this one's permutation holds the ranks."""
        if "inverse" not in self._made:
            self._made["inverse"] = Order(self.size)
        return self._made["inverse"]

    def part(self, key: object) -> Order:
        """Returns the order of some of the rows, of which others may have another one.

        Args:
            key: Which rows; those of one key are the same.
        """
        if len(self.fixed) == self.size:
            return self  # the same in every row
        if ("part", key) not in self._made:
            if self.inner is not None:
                order, before, after = self.inner
                made = order.part(key).extended(before, after)
            else:
                base = self.base.part(key) if self.base is not None else None
                made = Order(self.size, base, self.moved)
                made.fixed = dict(self.fixed)
            self._made["part", key] = made
            if "inverse" in self._made:
                made.set_inverse(self._made["inverse"].part(key))
        return self._made["part", key]

    def merged(self, outer: int, inner: int, key: object) -> Order:
        """Returns the order of an axis that is made of axes before it, its own, and some behind.

        Args:
            outer: How many rows the axes before have, each with an order of its own.
            inner: How many numbers the axes behind have, all alike.
            key: Which axes; those of one key are the same.
        """
        if ("merged", key) not in self._made:
            base = self.base.merged(outer, inner, key) if self.base is not None else None
            size = self.size * outer * inner
            made = Order(size, base, frozenset(self.merged_ranks(self.moved, outer, inner)))
            for place, rank in self.fixed.items():
                places, ranks = (self.merged_ranks([one], outer, inner) for one in (place, rank))
                made.fixed |= dict(zip(places, ranks, strict=True))
            self._made["merged", key] = made
        return self._made["merged", key]

    def merged_ranks(self, ranks: Iterable[int], outer: int, inner: int) -> list[int]:
        """Returns what ranks, or places, are along an axis made of several."""
        one = [rank * inner + at for rank in ranks for at in range(inner)]
        return [row * self.size * inner + rank for row in range(outer) for rank in one]

    def set_inverse(self, order: Order) -> None:
        """Records the order whose ranks this one's permutation holds."""
        self._made["inverse"] = order

    def cut(self, before: int, after: int) -> Order | None:
        """Returns the order without some fixed positions at its ends; None where it has fewer."""
        if not before and not after:
            return self
        if self.inner is None:
            return None
        order, own_before, own_after = self.inner
        if before > own_before or after > own_after:
            return None
        return order.extended(own_before - before, own_after - after)


@dataclass(frozen=True)
class Positions:
    """Distinct positions along an axis of a tensor of indices.

    Attributes:
        dim: The axis.
        order: What they are positions in.
        ranks: Their ranks, in the order they stand in.
        offset: What was added to every position.
    """

    dim: int
    order: Order
    ranks: tuple[int, ...]
    offset: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether they are all positions of the axis."""
        return len(self.ranks) == self.order.size

    @property
    def values(self) -> list[int] | None:
        """Their values; None where the data decides them."""
        if len(self.order.fixed) < self.order.size:
            return None
        place_of = {rank: place for place, rank in self.order.fixed.items()}
        return [place_of[rank] + self.offset for rank in self.ranks]

    def picked(self, ranks: Sequence[int]) -> Positions:
        """Returns the positions at some places."""
        return Positions(self.dim, self.order, tuple(ranks), self.offset)

    def rearranged(self, by: object) -> Positions:
        """Returns them in an order that only the data knows."""
        finer = self.order.refined(frozenset(self.ranks), by)
        return Positions(self.dim, finer, tuple(sorted(self.ranks)), self.offset)

    def mask(self, size: int) -> Mask | None:
        """Returns the mask of an axis that is true at them; None where they lie beyond it."""
        after = size - self.offset - self.order.size
        if self.offset < 0 or after < 0:
            return None
        order, ranks = self.order.extended_with(self.ranks, self.offset, after)
        return Mask(self.dim, order, frozenset(ranks))


@dataclass(frozen=True)
class Mask:
    """A tensor of zeros and ones, or of truth values, with the same count along an axis.

    Attributes:
        dim: The axis.
        order: The order of positions along it.
        ranks: The ranks that are true.
        repeats: The axes along which its values repeat.
    """

    dim: int
    order: Order = field(repr=False)
    ranks: Ranks
    repeats: frozenset[int] = frozenset()

    @property
    def count(self) -> int:
        """The number of true values in every row."""
        return len(self.ranks)

    @property
    def values(self) -> list[bool] | None:
        """Its truth values along the axis; None where the data decides them."""
        places = self.order.fixed
        if len(places) < self.order.size:
            return None
        return [places[place] in self.ranks for place in range(self.order.size)]

    def inverted(self) -> Mask:
        """Returns the inverted mask."""
        return replace(self, ranks=frozenset(range(self.order.size)) - self.ranks)

    def widened(self, before: Sequence[bool], after: Sequence[bool]) -> Mask:
        """Returns the mask with known truth values before and behind it."""
        order, ranks = self.order.extended_with(self.ranks, len(before), len(after))
        size = len(before) + self.order.size
        true = {place for place, one in enumerate(before) if one}
        true |= {size + place for place, one in enumerate(after) if one}
        fixed = {order.fixed[place] for place in true}
        return replace(self, order=order, ranks=frozenset(ranks) | fixed)

    def cut(self, before: int, after: int) -> Mask | None:
        """Returns the mask without positions at its ends; None where those are not known."""
        order = self.order.cut(before, after)
        if order is None:
            return None
        free = self.ranks - set(self.order.fixed.values())
        true = {
            rank
            for place, rank in order.fixed.items()
            if self.order.fixed[place + before] in self.ranks
        }
        return replace(self, order=order, ranks=frozenset(free | true))

    def with_fixed(self, positions: Iterable[int], true: bool) -> Mask | None:
        """Returns the mask with some positions set; None where their ranks are not known."""
        places = [*positions]
        if any(position not in self.order.fixed for position in places):
            return None
        ranks = {self.order.fixed[position] for position in places}
        return replace(self, ranks=self.ranks | ranks if true else self.ranks - ranks)

    def _in(self, order: Order) -> Ranks | None:
        """Returns its ranks in an order; None where they are not known there."""
        if len(self.order.fixed) == self.order.size:
            return self._known_in(order)
        at: Order | None = order
        while at is not None and at is not self.order:
            if self.ranks & at.moved and not at.moved <= self.ranks:
                return None
            at = at.base
        return None if at is None else self.ranks

    def _known_in(self, order: Order) -> Ranks | None:
        """Returns the ranks of a mask whose truth values are known."""
        if order.size != self.order.size:
            return None
        true = {place for place, rank in self.order.fixed.items() if rank in self.ranks}
        inside = true - order.fixed.keys()
        if inside and len(inside) < order.size - len(order.fixed):
            return None
        fixed = {order.fixed[place] for place in true & order.fixed.keys()}
        free = set(range(order.size)) - set(order.fixed.values()) if inside else set()
        return frozenset(fixed | free)


def in_one_order(one: Mask, other: Mask) -> tuple[Order, Ranks, Ranks] | None:
    """Returns an order that two masks share, and the ranks of each in it; None without one."""
    if one.dim != other.dim or one.repeats != other.repeats:
        return None
    for order in (one.order, other.order):
        first, second = one._in(order), other._in(order)
        if first is not None and second is not None:
            return order, first, second
    return None


def joined(one: Mask, other: Mask, function: Callable[[Any, Any], Any]) -> Mask | None:
    """Returns the mask that a function of two masks gives; None where it is not known."""
    common = in_one_order(one, other)
    if common is None:
        return None
    order, first, second = common
    values = [function(int(rank in first), int(rank in second)) for rank in range(order.size)]
    if any(value not in (0, 1) for value in values):
        return None
    ranks = frozenset(rank for rank, value in enumerate(values) if value)
    return Mask(one.dim, order, ranks, one.repeats)


def chosen(positions: Positions, mask: Mask) -> Positions | None:
    """Returns what a mask along their axis chooses of positions, in the order they stand in."""
    if positions.dim != mask.dim or mask.order.size != len(positions.ranks):
        return None
    own = frozenset(positions.ranks)
    finer = positions.order.refined(own, (positions.ranks, mask.order))
    ordered = sorted(own)
    taken = replace(positions, order=finer, ranks=tuple(ordered[rank] for rank in mask.ranks))
    return taken.rearranged((mask.order, mask.ranks))


def known_mask(dim: int, values: Sequence[bool]) -> Mask:
    """Returns a mask whose truth values are known."""
    order = Order(0).extended(len(values), 0)
    return Mask(dim, order, frozenset(place for place, true in enumerate(values) if true))


@dataclass(frozen=True)
class Constant:
    """A tensor all of whose numbers are one that is known."""

    value: float


@dataclass(frozen=True)
class OneHot:
    """One-hot rows (…, k, n) of distinct positions.

    Attributes:
        positions: The positions; their axis is that of the rows.
        size: How many places a row has.
        dim: The axis of the places.
    """

    positions: Positions
    size: int
    dim: int

    def joined(self) -> Mask | None:
        """Returns the mask of all rows together, once their axis is gone."""
        mask = self.positions.mask(self.size)
        return mask and replace(mask, dim=self.dim - (self.positions.dim < self.dim))


@dataclass(frozen=True)
class Chosen:
    """Positions that a mask chose, rows of equally many laid end to end.

    Attributes:
        positions: What they are as rows.
        shape: The shape of the rows.
    """

    positions: Positions
    shape: tuple[int, ...]


Fact = Positions | Mask | Constant | OneHot | Chosen
#: Says what is known of a tensor.
Known = Callable[[Any], Fact | None]
#: What a rule says of a result: a fact, one for some of several results, or nothing.
Found = Fact | Mapping[int, Fact] | None
#: A rule: asks with its first argument what is known of a tensor, and takes the function's own.
Rule = Callable[..., Found]
