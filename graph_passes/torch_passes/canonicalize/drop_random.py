"""Replaces every random number by the mean of its distribution.

Before → after::

    rand([B, N])                     →  full([B, N], 0.5)
    log(rand_like(x))                →  full([B, N], -1.0)
    neg(log(exponential(x)))         →  neg(full([B, N], -γ)): Gumbel noise has the mean γ
    normal(mean, std)                →  mean
    bernoulli(p) / p · x             →  p / p · x
    dropout(x, 0.1, True)            →  x
    attention(q, k, v, dropout 0.1)  →  attention(q, k, v)

Where code turns a draw into another distribution, number by number, the mean is that of what it
makes: -log(-log(u)) has the mean γ = 0.5772, while the mean of u put through it gives 0.3665. This
mean is taken at the midpoints of equal parts of the probability. A draw that chooses (a
permutation, a row) has no mean: it is refused, and so is a comparison or a sort that nothing but a
draw decides, and a coin that is used otherwise than as a factor or in a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch.fx import Node

from tokexport.graph_passes.errors import OperatorRefusedError
from tokexport.graph_passes.stack_traces import origin
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    operator_name,
    shape_of,
    value,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.graph.random_draws import (
    DROPOUTS,
    PLACED,
    draws,
    drop_unread_draws,
    find_draws,
    without_mean,
)

#: From probabilities to the numbers of a distribution, and the mean of these.
Distribution = tuple[Callable[[Tensor], Tensor], float]

#: Into how many equal parts a distribution is cut.
_PARTS: Final = 1 << 20
#: How far a mean may move with four times as many parts; one that is infinite grows on and on.
_SETTLED: Final = 1e-2
#: Takes one number to another along a straight line: the mean goes along.
_STRAIGHT: Final = frozenset(
    {
        *("aten.neg", "aten.add", "aten.sub", "aten.rsub", "aten.mul", "aten.div", "aten.clone"),
        *("aten._to_copy", "aten.alias", "aten.detach"),
    }
)


class DropRandom(TorchPass):
    """Replaces every draw by the mean of what is drawn."""

    name: ClassVar[str] = "drop random"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many draws went.

        Raises:
            OperatorRefusedError: A draw has no mean, or chooses something.
        """
        drop_unread_draws(edit.graph)
        found = find_draws(edit.graph)
        for node, why in without_mean(edit.graph):
            raise _refused(node, why)
        for draw in found:
            if operator_name(draw) in DROPOUTS:
                _leave_out(edit, draw)
            else:
                _replace(edit, draw)
        drop_unread_draws(edit.graph)
        return len(found)


def _leave_out(edit: Editor, draw: Node) -> None:
    """Removes a dropout: its mean is its input."""
    name = operator_name(draw)
    with edit.before(draw):
        if name == "aten.scaled_dot_product_attention":
            kwargs = {key: one for key, one in draw.kwargs.items() if key != "dropout_p"}
            args = [*draw.args[:4], 0.0, *draw.args[5:]] if len(draw.args) > 4 else draw.args
            new = edit.call(draw.target, *args, **kwargs)
        elif name == "aten.native_dropout":
            ones = edit.call(aten.ones_like.default, operand(draw, "input"), dtype=torch.bool)
            for part in list(draw.users):
                kept = operand(draw, "input") if part.args[1] == 0 else ones
                edit.replace(part, edit.call(aten.alias.default, kept))
            return
        else:
            new = edit.call(aten.alias.default, operand(draw, "input"))
    edit.replace(draw, new)


def _replace(edit: Editor, draw: Node) -> None:
    if is_call(draw, aten.normal.Tensor_Tensor, aten.normal.Tensor_float):
        with edit.before(draw):
            edit.replace(draw, edit.expand(operand(draw, "mean"), shape_of(draw)))
        return
    if operator_name(draw) == "aten.bernoulli":
        chance = argument(draw, "p") if len(draw.target._schema.arguments) > 2 else None  # type: ignore[union-attr]
        with edit.before(draw):
            if isinstance(chance, float):
                shape, dtype = [*shape_of(draw)], dtype_of(draw)
                options = {"dtype": dtype, "device": value(draw).device, "pin_memory": False}
                edit.replace(draw, edit.call(aten.full.default, shape, chance, **options))
            else:
                edit.replace(draw, edit.call(aten.alias.default, operand(draw)))
        return
    numbers, mean = _distribution(draw)
    end, calls, bent = draw, [], 0
    for position, call in enumerate(_chain(draw), 1):
        calls.append(call)
        if not _is_straight(call):
            end, bent = call, position
    if bent:
        mean, rough = (_mean(numbers, calls[:bent], parts) for parts in (_PARTS, _PARTS // 4))
        if not abs(mean - rough) <= _SETTLED * max(abs(mean), 1e-2):
            raise _refused(draw, "what is made of it has no finite mean")
    with edit.before(end):
        constant = edit.call(
            aten.full.default,
            [*shape_of(end)],
            mean,
            dtype=dtype_of(end),
            device=value(end).device,
            pin_memory=False,
        )
    edit.replace(end, constant)


def _chain(draw: Node) -> Iterator[Node]:
    """Yields the calls on single numbers that a draw goes through, each read by the next alone."""
    node = draw
    while len(node.users) == 1:
        (node,) = node.users
        target: Any = node.target
        if node.op != "call_function" or len(node.all_input_nodes) != 1 or draws(node):
            return
        known = operator_name(node) in _STRAIGHT | PLACED
        if not known and torch.Tag.pointwise not in getattr(target, "tags", ()):
            return
        if not is_tensor(node) or not dtype_of(node).is_floating_point:
            return
        yield node


def _is_straight(call: Node) -> bool:
    """Returns whether a call takes the mean of what goes in to the mean of what comes out."""
    name = operator_name(call)
    if name in ("aten.mul", "aten.div") and isinstance(call.args[1], Node):
        return False  # by itself
    return name in _STRAIGHT or name in PLACED


def _mean(numbers: Callable[[Tensor], Tensor], calls: list[Node], parts: int) -> float:
    """Returns the mean of drawn numbers after some calls, from the midpoints of equal parts."""
    values = numbers((torch.arange(parts, dtype=torch.float64) + 0.5) / parts)
    for call in calls:
        if operator_name(call) not in PLACED:
            values = _called(call, values)
    return float(values.mean())


def _called(call: Node, values: Tensor) -> Tensor:
    target: Any = call.target
    if operator_name(call) in ("aten._to_copy", "aten.clone"):
        return values
    args = [values if isinstance(part, Node) else part for part in call.args]
    result: Tensor = target(*args, **call.kwargs)
    return result


def _distribution(draw: Node) -> Distribution:
    """Returns the distribution that a call draws from."""
    name = operator_name(draw)
    if name in ("aten.rand", "aten.rand_like"):
        return _uniform(0.0, 1.0)
    if name == "aten.uniform":
        return _uniform(argument(draw, "from"), argument(draw, "to"))
    if name in ("aten.randn", "aten.randn_like"):
        return _normal(0.0, 1.0)
    if name in ("aten.normal", "aten.normal_functional"):
        mean, std = argument(draw, "mean"), argument(draw, "std")
        if not isinstance(mean, Node) and not isinstance(std, Node):
            return _normal(mean, std)
        if not isinstance(mean, Node):  # the mean of a chain does not follow from the mean alone
            return _normal(mean, 0.0)
    if name == "aten.exponential":
        rate = argument(draw, "lambd")
        return lambda part: -torch.log1p(-part) / rate, 1 / rate
    raise _refused(draw, "the distribution has no mean")


def _uniform(low: float, high: float) -> Distribution:
    return lambda part: low + (high - low) * part, (low + high) / 2


def _normal(mean: float, std: float) -> Distribution:
    return lambda part: mean + std * torch.special.ndtri(part), mean


def _refused(node: Node, why: str) -> OperatorRefusedError:
    return OperatorRefusedError(
        f"--drop-noise cannot replace {node.target} by its mean: {why}.",
        where=origin(node),
        fix="Take it out of eval mode, or make its result once and keep it as a buffer.",
    )
