"""Writes an einsum of two tensors as a product of matrices.

Before → after::

    einsum("bhid,bhjd->bhij", q, k)  →  q @ permute(k, (0, 1, 3, 2))
    einsum("bnc,kc->bnk", x, w)      →  reshape(reshape(x) @ permute(w), …)

Each letter stands in both tensors and the result (batch), in both tensors only (summed), or in one
tensor and the result (rows, columns); their axes are brought together in this order. An equation
with other letters, an ellipsis, a diagonal or a spread axis stays as it is, and so does one that
sums nothing, or all. Passes that look for attention then see its one form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch.fx import Node

from tokexport.graph_passes.torch_passes.calls import argument, is_call, operands, shape_of
from tokexport.graph_passes.torch_passes.editor import Editor, aten
from tokexport.graph_passes.torch_passes.infrastructure import TorchPass


@dataclass(frozen=True)
class Product:
    """The letters of an einsum that is a product of matrices.

    Attributes:
        left: Those of the first tensor, in its order.
        right: Those of the second.
        result: Those of the result.
        batch: Those of all three, in the order of the result.
        summed: Those of both tensors that the result lacks, in the order of the first.
        rows: Those of the first tensor and the result, in the order of the result.
        columns: Those of the second tensor and the result, in the order of the result.
    """

    left: str
    right: str
    result: str
    batch: str
    summed: str
    rows: str
    columns: str


class EinsumAsMatmul(TorchPass):
    """Turns einsums into permutations, reshapes and one product."""

    name: ClassVar[str] = "einsum as matmul"
    comes_before: ClassVar[tuple[str, ...]] = ("recognise matches", "recognise attention")

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many einsums it took."""
        changed = 0
        for node in list(edit.graph.nodes):
            if not is_call(node, aten.einsum.default):
                continue
            tensors = operands(node, "tensors")
            found = _read(str(argument(node, "equation")), tensors)
            if found is not None:
                with edit.before(node):
                    edit.replace(node, _multiplied(edit, found, *tensors))
                changed += 1
        return changed


def _read(equation: str, tensors: Sequence[Node]) -> Product | None:
    """Reads an equation; None where it is not a product of two matrices."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    parts = given.split(",")
    if not arrow or len(parts) != 2 or len(tensors) != 2:
        return None
    left, right = parts
    if any(len(set(part)) != len(part) or "." in part for part in (left, right, result)):
        return None
    sizes = [dict(zip(p, shape_of(t), strict=True)) for p, t in zip(parts, tensors, strict=True)]
    if any(sizes[0][letter] != sizes[1][letter] for letter in set(left) & set(right)):
        return None
    batch = "".join(letter for letter in result if letter in left and letter in right)
    summed = "".join(letter for letter in left if letter in right and letter not in result)
    rows = "".join(letter for letter in result if letter in left and letter not in right)
    columns = "".join(letter for letter in result if letter in right and letter not in left)
    lost = (set(left) | set(right)) - set(batch + summed + rows + columns)
    if lost or not summed or not result or len(batch + rows + columns) != len(result):
        return None
    return Product(left, right, result, batch, summed, rows, columns)


def _multiplied(edit: Editor, found: Product, a: Node, b: Node) -> Node:
    """Inserts the product and brings its axes into the order of the result."""
    size = dict(zip(found.left, shape_of(a), strict=True))
    size |= dict(zip(found.right, shape_of(b), strict=True))

    def sizes(letters: str) -> list[int]:
        return [size[letter] for letter in letters]

    outside = sizes(found.batch)
    height, depth, width = (prod(sizes(part)) for part in (found.rows, found.summed, found.columns))
    a = edit.permute(a, _order(found.left, found.batch + found.rows + found.summed))
    b = edit.permute(b, _order(found.right, found.batch + found.summed + found.columns))
    product = edit.call(
        aten.matmul.default,
        edit.view(a, (*outside, height, depth)),
        edit.view(b, (*outside, depth, width)),
    )
    letters = found.batch + found.rows + found.columns
    return edit.permute(edit.view(product, sizes(letters)), _order(letters, found.result))


def _order(letters: str, wanted: str) -> list[int]:
    """Returns the permutation that brings axes into another order."""
    return [letters.index(letter) for letter in wanted]
