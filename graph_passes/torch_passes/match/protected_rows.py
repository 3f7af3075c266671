"""Finds the tokens that a match always keeps, because their scores are set to -∞.

In ``kept, src, dst = bipartite_match(scores, r, "index")`` with ``scores[:, :p] = -∞`` the first p
of ``kept`` are 0 … p - 1, whatever the image: only rows that score higher are taken while there are
r of them, and what is kept is in order. ToMe (Bolya et al. 2023) protects its class token so.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    constant_of,
    is_call,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import aten

_ROWS, _COLUMNS = 1, 2


def protected_rows(kept: Node) -> int:
    """Returns how many of the first rows of a match are kept for certain, each in its place.

    Args:
        kept: Any value; 0 where it is no match's ``kept``.
    """
    if not is_call(kept, operator.getitem) or kept.args[1] != 0:
        return 0
    match = kept.args[0]
    if not is_call(match, torch.ops.tokexport.bipartite_match.default):
        return 0
    assert isinstance(match, Node)
    scores = operand(match, "scores")
    _, rows, columns = shape_of(scores)
    barred: dict[int, set[int]] = {_ROWS: set(), _COLUMNS: set()}
    while (found := _written_over(scores)) is not None:
        along, places = found
        barred[along] |= places
        scores = operand(scores)
    count = len(barred[_ROWS])
    # A product is never -∞ in a whole row, where one of its columns is left as it is.
    certain = (
        is_call(scores, aten.matmul.default)
        and barred[_ROWS] == set(range(count))
        and len(barred[_COLUMNS]) < columns
        and argument(match, "r") <= rows - count
        and argument(match, "order") == "index"
    )
    return count if certain else 0


def _written_over(scores: Node) -> tuple[int, set[int]] | None:
    """Returns the axis and the places where a call writes -∞ over scores; None for another."""
    if not is_call(scores, aten.select_scatter.default, aten.slice_scatter.default):
        return None
    along = axis(scores)
    if along not in (_ROWS, _COLUMNS) or not _is_never(operand(scores, "src")):
        return None
    size = shape_of(scores)[along]
    if is_call(scores, aten.select_scatter.default):
        place = argument(scores, "index")
        return (along, {place % size}) if isinstance(place, int) else None
    given = [argument(scores, name) for name in ("start", "end", "step")]
    if not all(one is None or isinstance(one, int) for one in given):
        return None
    return along, set(range(*slice(*given).indices(size)))


def _is_never(value: Node) -> bool:
    """Returns whether a value is -∞ all over."""
    if is_call(value, aten.fill.Scalar, aten.fill.Tensor):
        given = argument(value, "value")
    elif is_call(value, aten.full.default, aten.full_like.default):
        given = argument(value, "fill_value")
    else:
        given = value
    constant = constant_of(given)
    if constant is not None:
        return bool((constant == -torch.inf).all())
    return isinstance(given, float) and given == -torch.inf
