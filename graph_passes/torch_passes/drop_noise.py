"""Puts the mean of its distribution in the place of every random number.

Before → after::

    rand([B, N])                     →  full([B, N], 0.5)
    log(rand_like(x))                →  full([B, N], -1.0)
    neg(log(exponential(x)))         →  neg(full([B, N], -γ)): Gumbel noise has the mean γ
    normal(mean, std)                →  mean

Where code turns a draw into another distribution, number by number, the mean is that of what it
makes: -log(-log(u)) has the mean γ = 0.5772, while the mean of u put through it gives 0.3665. Such
a mean is taken at the midpoints of equal parts of the probability. A draw that chooses (a
permutation, a coin, a row) has no mean: it is refused, and so is a comparison or a sort that
nothing but a draw decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch.fx import Graph, Node

from tokexport.graph_passes.draws import draws, drop_unread_draws, find_draws
from tokexport.graph_passes.errors import OperatorRefusedError
from tokexport.graph_passes.torch_passes.calls import (
    argument,
    dtype_of,
    is_call,
    operand,
    operator_name,
    shape_of,
    value,
)
from tokexport.graph_passes.torch_passes.editor import Editor, aten, source_line
from tokexport.graph_passes.torch_passes.infrastructure import TorchPass

#: From probabilities to the numbers of a distribution, and the mean of these.
Distribution = tuple[Callable[[Tensor], Tensor], float]

#: Into how many equal parts a distribution is cut.
_PARTS: Final = 1 << 20
#: Takes one number to another along a straight line: the mean goes along.
_STRAIGHT: Final = (
    aten.neg.default,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.rsub.Scalar,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.clone.default,
)
#: Bends it, and leaves a mean that is finite.
_BENT: Final = (
    aten.log.default,
    aten.log1p.default,
    aten.abs.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
)
_CHOICES: Final = frozenset(
    {
        *("aten.gt", "aten.ge", "aten.lt", "aten.le", "aten.eq", "aten.ne", "aten.sort"),
        *("aten.argsort", "aten.topk", "aten.kthvalue", "aten.argmax", "aten.argmin", "aten.floor"),
        *("aten.ceil", "aten.round", "aten.trunc", "aten.sign", "aten.searchsorted"),
    }
)


class DropNoise(TorchPass):
    """Replaces every draw by the mean of what is drawn."""

    name: ClassVar[str] = "drop noise"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many draws went.

        Raises:
            OperatorRefusedError: A draw has no mean, or chooses something.
        """
        drop_unread_draws(edit.graph)
        found = find_draws(edit.graph)
        for choice in _choices(edit.graph):
            raise _refused(choice, "nothing but random numbers decides its result")
        for draw in found:
            _replace(edit, draw)
        drop_unread_draws(edit.graph)
        return len(found)


def _choices(graph: Graph) -> Iterator[Node]:
    """Yields the calls that choose by numbers that a draw reaches and no input does."""
    drawn: set[Node] = set()
    given: set[Node] = set()
    weights = {node for node in graph.nodes if node.op == "placeholder" and _is_weight(node)}
    for node in graph.nodes:
        if draws(node):
            drawn.add(node)
            continue
        sources = node.all_input_nodes
        if any(source in drawn for source in sources):
            drawn.add(node)
        if (node.op == "placeholder" and node not in weights) or given & {*sources}:
            given.add(node)
        elif node in drawn and node.op == "call_function" and operator_name(node) in _CHOICES:
            yield node


def _is_weight(node: Node) -> bool:
    """Tells a lifted parameter, buffer or constant from an input of the model."""
    return node.name.startswith(("p_", "b_", "c_"))


def _replace(edit: Editor, draw: Node) -> None:
    if is_call(draw, aten.normal.Tensor_Tensor, aten.normal.Tensor_float):
        with edit.before(draw):
            edit.replace(draw, edit.expand(operand(draw, "mean"), shape_of(draw)))
        return
    numbers, mean = _distribution(draw)
    end, calls = draw, []
    for position, call in enumerate(_chain(draw), 1):
        calls.append(call)
        if is_call(call, *_BENT):
            end, bent = call, position
    if end is not draw:
        values = numbers((torch.arange(_PARTS, dtype=torch.float64) + 0.5) / _PARTS)
        for call in calls[:bent]:
            values = _called(call, values)
        mean = float(values.mean())
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
        if not is_call(node, *_STRAIGHT, *_BENT) or len(node.all_input_nodes) != 1:
            return
        yield node


def _called(call: Node, values: Tensor) -> Tensor:
    target: Any = call.target
    args = [values if isinstance(part, Node) else part for part in call.args]
    kwargs = {name: part for name, part in call.kwargs.items() if name != "memory_format"}
    result: Tensor = target(*args, **kwargs)
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
        if not isinstance(mean, Node):  # the mean alone tells nothing of what a chain makes of it
            return _normal(mean, 0.0)
    if name == "aten.exponential":
        rate = argument(draw, "lambd")
        return lambda part: -torch.log1p(-part) / rate, 1 / rate
    raise _refused(draw, "what it draws has none")


def _uniform(low: float, high: float) -> Distribution:
    return lambda part: low + (high - low) * part, (low + high) / 2


def _normal(mean: float, std: float) -> Distribution:
    return lambda part: mean + std * torch.special.ndtri(part), mean


def _refused(node: Node, why: str) -> OperatorRefusedError:
    return OperatorRefusedError(
        f"--drop-noise cannot replace {node.target} by its mean: {why}.",
        where=f"At {source_line(node) or node.name}",
        fix="Take it out of eval mode, or make its result once and keep it as a buffer.",
    )
