"""Writes every product of two tensors over shared axes as ``matmul``.

Before → after::

    bmm(a, b)                           →  matmul(a, b)
    baddbmm(x, a, b, beta, alpha)       →  beta · x + alpha · matmul(a, b)
    einsum("bhid,bhjd->bhij", q, k)     →  matmul(q, kᵀ)
    einsum("bnhd,bmhd->bhnm", q, k)     →  matmul(q as (b, h, n, d), k as (b, h, d, m))
    bmm(q.flatten(0, 1), k.flatten(0, 1))   →  matmul(q, k).flatten(0, 1)

An einsum of two operands becomes (batch…, left, shared) @ (batch…, shared, right), its groups of
several axes joined by a reshape, and the result permuted to the order asked for. Left as they are:
other numbers of operands, a letter twice in one operand, sums over a letter that only one operand
has, and products that sum nothing or everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    is_call,
    operand,
    operands,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass


class ProductsAsMatmul(TorchPass):
    """Turns bmm, baddbmm and einsum into matmul."""

    name: ClassVar[str] = "products as matmul"
    comes_before: ClassVar[tuple[str, ...]] = (
        "recognise attention",
        "recognise matches",
        "one-hot to gather",
    )

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many products it changed."""
        changed = 0
        for node in list(edit.graph.nodes):
            with edit.before(node):
                new = _as_matmul(edit, node)
            if new is not None:
                edit.replace(node, new)
                changed += 1
        return changed


def _as_matmul(edit: Editor, node: Node) -> Node | None:
    if is_call(node, aten.bmm.default):
        return _product(edit, operand(node), operand(node, "mat2"))
    if is_call(node, aten.matmul.default) and len(shape_of(node)) == 3:
        return _unflattened(edit, operand(node), operand(node, "other"))
    if is_call(node, aten.baddbmm.default):
        return _added(edit, node)
    return _einsum(edit, node) if is_call(node, aten.einsum.default) else None


def _added(edit: Editor, node: Node) -> Node:
    product = _product(edit, operand(node, "batch1"), operand(node, "batch2"))
    if (alpha := argument(node, "alpha")) != 1:
        product = edit.call(aten.mul.Tensor, product, alpha)
    if (beta := argument(node, "beta")) == 0:  # the tensor is ignored then, NaN and all
        return product
    term = operand(node)
    if beta != 1:
        term = edit.call(aten.mul.Tensor, term, beta)
    return edit.call(aten.add.Tensor, product, term)


def _product(edit: Editor, one: Node, other: Node) -> Node:
    return _unflattened(edit, one, other) or edit.call(aten.matmul.default, one, other)


def _unflattened(edit: Editor, one: Node, other: Node) -> Node | None:
    """Inserts the product of four axes where both operands have images and heads in one axis."""
    if not _is_flattened(one) or not _is_flattened(other):
        return None
    wide = [_widened(edit, part) for part in (one, other)]
    if shape_of(wide[0])[:2] != shape_of(wide[1])[:2]:
        return None
    product = edit.call(aten.matmul.default, *wide)
    return edit.view(product, (shape_of(one)[0], *shape_of(product)[2:]))


def _is_flattened(node: Node) -> bool:
    """Returns whether (B·H, N, D) was (B, H, N, D), perhaps scaled or turned since."""
    if _is_scaled(node):
        return _is_flattened(operand(node))
    if is_call(node, aten.transpose.int) and len(shape_of(node)) == 3:
        exchanged = {axis(node, "dim0"), axis(node, "dim1")} == {1, 2}
        return exchanged and _is_flattened(operand(node))
    if not is_call(node, aten.reshape.default) or len(shape_of(node)) != 3:
        return False
    before = shape_of(operand(node))
    return len(before) == 4 and before[2:] == shape_of(node)[1:]


def _widened(edit: Editor, node: Node) -> Node:
    if is_call(node, aten.reshape.default):
        return operand(node)
    wide = _widened(edit, operand(node))
    if _is_scaled(node):
        return edit.call(node.target, wide, node.args[1])
    return edit.call(aten.transpose.int, wide, 2, 3)


def _is_scaled(node: Node) -> bool:
    """Returns whether a value is another times, or over, a number."""
    if not is_call(node, aten.mul.Tensor, aten.div.Tensor):
        return False
    return isinstance(node.args[0], Node) and isinstance(node.args[1], int | float)


@dataclass(frozen=True)
class _Letters:
    """The letters of an einsum of two operands."""

    first: str
    second: str
    result: str

    @property
    def batch(self) -> str:
        """Letters of both operands and of the result."""
        return "".join(a for a in self.result if a in self.first and a in self.second)

    @property
    def left(self) -> str:
        """Letters of the first operand alone."""
        return "".join(a for a in self.result if a not in self.second)

    @property
    def right(self) -> str:
        """Letters of the second operand alone."""
        return "".join(a for a in self.result if a not in self.first)

    @property
    def shared(self) -> str:
        """Letters that are summed over."""
        return "".join(a for a in self.first if a in self.second and a not in self.result)


def _einsum(edit: Editor, node: Node) -> Node | None:
    parts = operands(node, "tensors")
    if len(parts) != 2:
        return None
    first, second = parts
    letters = _read(argument(node, "equation"), len(shape_of(first)), len(shape_of(second)))
    if letters is None:
        return None
    sizes: dict[str, int] = {}
    for part, names in ((first, letters.first), (second, letters.second)):
        for size, letter in zip(shape_of(part), names, strict=True):
            if sizes.setdefault(letter, size) != size:
                return None  # an axis of size 1 is spread
    one = _grouped(edit, first, letters.first, letters.batch, letters.left, letters.shared)
    other = _grouped(edit, second, letters.second, letters.batch, letters.shared, letters.right)
    product = edit.call(aten.matmul.default, one, other)
    order = letters.batch + letters.left + letters.right
    product = edit.view(product, [sizes[letter] for letter in order])
    return edit.permute(product, [order.index(letter) for letter in letters.result])


def _read(equation: str, first_rank: int, second_rank: int) -> _Letters | None:
    """Reads an equation with its result written out and its dots as letters."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    names = given.split(",")
    if len(names) != 2:
        return None
    free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
    spread = []
    for name, rank in zip(names, (first_rank, second_rank), strict=True):
        dots = rank - len(name.replace("...", "")) if "..." in name else 0
        spread.append(name.replace("...", "".join(free[:dots][::-1])))
    if not arrow:
        both = "".join(spread)
        dotted = "".join(letter for letter in spread[0] + spread[1] if letter in free)
        dotted = "".join(dict.fromkeys(sorted(dotted, reverse=True)))
        result = dotted + "".join(
            sorted(a for a in set(both) if both.count(a) == 1 and a not in dotted)
        )
    elif "..." in result:
        longest = max(spread, key=lambda name: sum(letter in free for letter in name))
        result = result.replace("...", "".join(a for a in longest if a in free))
    letters = _Letters(spread[0], spread[1], result)
    for name in (letters.first, letters.second, letters.result):
        if len(set(name)) < len(name):
            return None
    alone = set(letters.first) ^ set(letters.second)
    sums_some = bool(letters.shared and result)
    return letters if alone <= set(result) and sums_some else None


def _grouped(edit: Editor, node: Node, names: str, batch: str, rows: str, columns: str) -> Node:
    """Inserts what makes an operand (batch…, rows, columns), each group but the batch one axis."""
    order = batch + rows + columns
    moved = edit.permute(node, [names.index(letter) for letter in order])
    sizes = [shape_of(moved)[position] for position in range(len(order))]
    cut, end = len(batch), len(batch) + len(rows)
    return edit.view(moved, (*sizes[:cut], prod(sizes[cut:end]), prod(sizes[end:])))
