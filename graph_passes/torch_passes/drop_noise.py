"""Puts the mean of its distribution in the place of every random number.

Before → after::

    rand([B, N])                     →  full([B, N], 0.5)
    log(rand_like(x))                →  full([B, N], -1.0)
    neg(log(exponential(x)))         →  neg(full([B, N], -γ)): Gumbel noise has the mean γ
    normal(mean, std)                →  mean
    bernoulli(p) / p · x             →  p / p · x
    dropout(x, 0.1, True)            →  x
    attention(q, k, v, dropout 0.1)  →  attention(q, k, v)

Where code turns a draw into another distribution, number by number, the mean is that of what it
makes: -log(-log(u)) has the mean γ = 0.5772, while the mean of u put through it gives 0.3665. Such
a mean is taken at the midpoints of equal parts of the probability. A draw that chooses (a
permutation, a row) has no mean: it is refused, and so is a comparison or a sort that nothing but a
draw decides, and a coin that is used otherwise than as a factor or in a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch.fx import Graph, Node

from tokexport.graph_passes.draws import draws, drop_unread_draws, find_draws
from tokexport.graph_passes.errors import OperatorRefusedError
from tokexport.graph_passes.stack_traces import origin
from tokexport.graph_passes.torch_passes.calls import (
    argument,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    operator_name,
    shape_of,
    value,
)
from tokexport.graph_passes.torch_passes.editor import Editor, aten
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
#: Draws of a dropout, whose mean is what goes in.
_DROPOUTS: Final = frozenset(
    {
        *("aten.dropout", "aten.native_dropout", "aten.feature_dropout"),
        "aten.scaled_dot_product_attention",
    }
)
_PERMUTATION: Final = "a permutation that is drawn has no mean"
#: Draws that choose, and why no mean stands for them.
_CHOOSING: Final = {
    "aten.randperm": _PERMUTATION,
    "aten.multinomial": "rows that are drawn have no mean",
    "aten.randint": "positions that are drawn have no mean",
    "aten.randint_like": "positions that are drawn have no mean",
}
#: Draws whose distribution has a mean.
_KNOWN: Final = frozenset(
    {
        *("aten.rand", "aten.rand_like", "aten.uniform", "aten.randn", "aten.randn_like"),
        *("aten.normal", "aten.normal_functional", "aten.exponential", "aten.bernoulli"),
    }
)
#: What moves numbers, or adds and multiplies them.
_MOVED: Final = frozenset(
    {
        *("aten.mul", "aten.div", "aten.add", "aten.sub", "aten.neg", "aten._to_copy"),
        *("aten.clone", "aten.expand", "aten.view", "aten.reshape", "aten.unsqueeze"),
        *("aten.squeeze", "aten.permute", "aten.transpose", "aten.slice", "aten.select"),
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
        for node, why in without_mean(edit.graph):
            raise _refused(node, why)
        for draw in found:
            if operator_name(draw) in _DROPOUTS:
                _leave_out(edit, draw)
            else:
                _replace(edit, draw)
        drop_unread_draws(edit.graph)
        return len(found)


def without_mean(graph: Graph) -> Iterator[tuple[Node, str]]:
    """Yields the calls of a graph that no mean can stand for, and why, a clause."""
    for choice in _choices(graph):
        sorts = operator_name(choice) in ("aten.sort", "aten.argsort", "aten.topk")
        yield choice, _PERMUTATION if sorts else "nothing but random numbers decides its result"
    for draw in find_draws(graph):
        name = operator_name(draw)
        if name in _CHOOSING:
            yield draw, _CHOOSING[name]
        elif name == "aten.bernoulli" and (reader := _reads_as_truth(draw)):
            yield draw, f"{operator_name(reader)} chooses by that coin"
        elif name not in _DROPOUTS and name not in _KNOWN:
            yield draw, "what it draws has none"


def _reads_as_truth(draw: Node) -> Node | None:
    """Returns what reads a coin otherwise than in sums and products; None where nothing does."""
    seen, waiting = {draw}, [draw]
    while waiting:
        for reader in waiting.pop().users:
            if reader.op == "output" or not is_tensor(reader) or reader in seen:
                continue
            if operator_name(reader) not in _MOVED:
                return reader
            if not dtype_of(reader).is_floating_point:
                return reader
            seen.add(reader)
            # What the coin was a factor of, or added to, is a number like any other from there on.
            if len(reader.all_input_nodes) == 1:
                waiting.append(reader)
    return None


def _leave_out(edit: Editor, draw: Node) -> None:
    """Leaves out a dropout; its mean is what goes in."""
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
        where=origin(node),
        fix="Take it out of eval mode, or make its result once and keep it as a buffer.",
    )
