"""Describes a decision: its scores, its axis, and which of them are better.

A decision turns numbers into positions or truth values::

    bipartite_match(scores, r, order)    the best partner of each row, and the r best rows
    sort, argsort, topk, argmax, max …   positions along an axis, or in the whole, the best first
    x > y, x <= 0.5, x.bool() …          truth values
    x.round(), x.sign(), x.long() …      a step of a staircase for each number
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import torch
from torch.fx import Node

from tokexport.graph_passes.stack_traces import source_line
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    base_name,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    operator_name,
)
from tokexport.graph_passes.torch_passes.graph.editor import DERIVED, MADE, STANDS_FOR, aten

WITH_VALUES: Final = (
    aten.sort.default,
    aten.sort.stable,
    aten.topk.default,
    aten.max.dim,
    aten.min.dim,
)
_FIRST_OF_BEST: Final = (
    aten.max.dim,
    aten.min.dim,
    aten.argmax.default,
    aten.argmin.default,
)
_ORDERS: Final = (
    *WITH_VALUES,
    *_FIRST_OF_BEST,
    aten.argsort.default,
    aten.argsort.stable,
)
_COMPARISONS: Final = tuple(
    overload
    for packet in (aten.gt, aten.ge, aten.lt, aten.le, aten.eq, aten.ne)
    for overload in (packet.Tensor, packet.Scalar)
)
_STAIRCASES: Final = (
    aten.round.default,
    aten.round.decimals,
    aten.floor.default,
    aten.ceil.default,
    aten.trunc.default,
    aten.sign.default,
)
_CASTS: Final = (aten._to_copy.default, aten.to.dtype)


class DecisionKind(Enum):
    """What the results of a decision mean.

    ``MATCH``       kept, src and dst of ``bipartite_match``
    ``ORDER``       positions along an axis, the best first
    ``COMPARISON``  truth values
    ``STAIRCASE``   of each number the step that it lies on: its floor, its sign
    """

    MATCH = "match"
    ORDER = "order"
    COMPARISON = "comparison"
    STAIRCASE = "staircase"


@dataclass(frozen=True)
class Decision:
    """A call that turns numbers into positions or truth values.

    Attributes:
        operator: The operator that decides: ``tokexport.bipartite_match``.
        line: The line of the user's code that it came from, or ''.
        kind: What its results mean.
        dim: The axis that is ordered; 0 where none is; None where all numbers are ordered as one.
        ordered: The order of a match's kept rows, ``index`` or ``score``; '' of anything else.
        scores: The names of the values that hold the numbers decided on.
        replayed: By result (0 for the only one), the input that holds what is decided.
        own: By result, the value that holds what the graph itself would decide.
        negative: Whether the smallest of the scores are the best.
        turned: Whether it decides on the scores with their last two axes exchanged.
        stable: Whether of equal scores the lower index comes first.
        beside: What a comparison compares its only scores with.
        rule: Which comparison or staircase it is: ``gt``, ``floor``; '' of anything else.
        digits: How many decimals a rounding keeps.
    """

    operator: str
    line: str
    kind: DecisionKind
    dim: int | None
    ordered: str
    scores: tuple[str, ...]
    replayed: dict[int, str]
    own: dict[int, str]
    negative: bool = False
    turned: bool = False
    stable: bool = False
    beside: float = 0.0
    rule: str = ""
    digits: int = 0


def decides(node: Node) -> bool:
    """Returns whether a call turns floating-point numbers into positions, truth values or steps."""
    if is_call(node, torch.ops.tokexport.bipartite_match.default):
        return True
    if is_call(node, *_ORDERS):
        return dtype_of(operand(node)).is_floating_point
    return bool(_rule(node)) and bool(scores_of(node))


def decision_of(
    node: Node, scores: tuple[str, ...], replayed: dict[int, str], own: dict[int, str]
) -> Decision:
    """Describes a call that decides.

    Args:
        node: The call.
        scores: The names of the numbers that it is about.
        replayed: The inputs that hold what is decided, by result.
        own: The values that hold what it decides itself, by result.
    """
    kind, dim, ordered = _kind(node)
    return Decision(
        operator=operator_name(node),
        line=source_line(node),
        kind=kind,
        dim=dim,
        ordered=ordered,
        scores=scores,
        replayed=replayed,
        own=own,
        negative=_is_derived(node, aten.neg.default) != _smallest_first(node),
        turned=_is_derived(node, aten.transpose.int),
        stable=_is_stable(node),
        beside=_beside(node),
        rule=_rule(node),
        digits=argument(node, "decimals") if is_call(node, aten.round.decimals) else 0,
    )


def scores_of(node: Node) -> list[Node]:
    """Returns the numbers that a decision is about, as eager has them; none where all are whole."""
    parts = [part for part in node.args if isinstance(part, Node) and is_tensor(part)]
    if not any(dtype_of(part).is_floating_point for part in parts):
        return []
    return [_underived(part) for part in parts]


def _kind(node: Node) -> tuple[DecisionKind, int | None, str]:
    if is_call(node, torch.ops.tokexport.bipartite_match.default):
        return DecisionKind.MATCH, 1, argument(node, "order")
    if is_call(node, *_COMPARISONS) or _rule(node) == "ne":
        return DecisionKind.COMPARISON, 0, ""
    if _rule(node):
        return DecisionKind.STAIRCASE, 0, ""
    return DecisionKind.ORDER, None if argument(node, "dim") is None else axis(node), ""


def _rule(node: Node) -> str:
    """Returns the name of a call's comparison or staircase; '' for other calls.

    A cast truncates, and to truth values it compares with zero. Steps that a pass inserts are about
    whole numbers, which it cast to floats itself, and eager has no scores for comparisons that a
    pass inserts.
    """
    if is_call(node, *_COMPARISONS) and (STANDS_FOR in node.meta or not node.meta.get(MADE)):
        return base_name(node.target)
    if node.meta.get(MADE):
        return ""
    if is_call(node, *_STAIRCASES):
        return base_name(node.target)
    if not is_call(node, *_CASTS) or dtype_of(node).is_floating_point or dtype_of(node).is_complex:
        return ""
    return "ne" if dtype_of(node) == torch.bool else "trunc"


def _smallest_first(node: Node) -> bool:
    if is_call(node, aten.topk.default):
        return not argument(node, "largest")
    if is_call(node, aten.min.dim, aten.argmin.default):
        return True
    sorts = (aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argsort.stable)
    return is_call(node, *sorts) and not argument(node, "descending")


def _is_stable(node: Node) -> bool:
    if is_call(node, aten.sort.stable, aten.argsort.stable):
        return bool(argument(node, "stable"))
    return is_call(node, torch.ops.tokexport.bipartite_match.default, *_FIRST_OF_BEST)


def _beside(node: Node) -> float:
    if not is_call(node, *_COMPARISONS) or isinstance(argument(node, "other"), Node):
        return 0.0
    other = argument(node, "other")
    return float(torch.tensor(other, dtype=dtype_of(operand(node))))  # as it is compared


def _underived(node: Node) -> Node:
    return _underived(operand(node)) if node.meta.get(DERIVED) else node


def _is_derived(decision: Node, target: object) -> bool:
    """Returns whether a pass made what is decided on by a call of the target."""
    node = decision.args[0]
    while isinstance(node, Node) and node.meta.get(DERIVED):
        if is_call(node, target):
            return True
        node = operand(node)
    return False
