"""Finds the calls of a traced graph that draw random numbers, and the choices they make.

A draw that chooses (a permutation, a row) has no mean, nor has a comparison or a sort that nothing
but a draw decides, for all of its numbers or for some, nor a coin that is used otherwise than as a
factor or in a sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    operator_name,
)
from tokexport.graph_passes.torch_passes.graph.editor import aten

#: Arguments under which an operator that could draw draws nothing, and the values that say so.
_SILENT: Final = {
    "dropout_p": (0.0,),
    "dropout": (0.0,),
    "p": (0.0,),
    "train": (False,),
    "training": (False,),
}


def draws(node: Node) -> bool:
    """Returns whether a call draws random numbers; a dropout that is switched off does not."""
    target = node.target
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    names = {formal.name for formal in target._schema.arguments}
    return not any(
        argument(node, name) in silent for name, silent in _SILENT.items() if name in names
    )


def drop_unread_draws(graph: Graph) -> None:
    """Removes nodes that no output reads, draws included, which torch would keep."""
    graph.eliminate_dead_code(lambda node: node.is_impure() and not draws(node))


def find_draws(graph: Graph) -> list[Node]:
    """Returns the calls that draw random numbers, in order."""
    return [node for node in graph.nodes if draws(node)]


#: Operators that move numbers without changing them.
PLACED: Final = frozenset(
    {
        *("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten"),
        *("aten.expand", "aten.repeat", "aten.unsqueeze", "aten.squeeze", "aten.permute", "aten.t"),
        *("aten.transpose", "aten.slice", "aten.select", "aten.flip", "aten.contiguous"),
    }
)
_CHOICES: Final = frozenset(
    {
        *("aten.gt", "aten.ge", "aten.lt", "aten.le", "aten.eq", "aten.ne", "aten.sort"),
        *("aten.argsort", "aten.topk", "aten.kthvalue", "aten.argmax", "aten.argmin", "aten.floor"),
        *("aten.ceil", "aten.round", "aten.trunc", "aten.sign", "aten.searchsorted"),
        "aten.bucketize",
    }
)
#: Operators that compare two numbers.
_COMPARES: Final = frozenset(
    {
        *("aten.gt", "aten.ge", "aten.lt", "aten.le", "aten.eq", "aten.ne", "aten.searchsorted"),
        "aten.bucketize",
    }
)
#: Operators that order numbers.
_SORTS: Final = frozenset({"aten.sort", "aten.argsort", "aten.topk"})
#: Operators that read only the shape of their operand.
_OF_A_SHAPE: Final = frozenset(
    {
        *("aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like"),
        *("aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty"),
    }
)
#: Operators that take each number from one of several values.
_TAKES_EACH: Final = frozenset(
    {
        *("aten.where", "aten.masked_fill", "aten.cat", "aten.stack", "aten.index_put"),
        *("aten.slice_scatter", "aten.select_scatter", "aten.scatter", "aten.masked_scatter"),
    }
)
#: Operators that read rows of their first operand.
_READS: Final = frozenset({"aten.gather", "aten.index", "aten.index_select", "aten.take_along_dim"})
#: Linear operators, which turn an input by what the other operand holds.
_TURNS: Final = frozenset(
    {
        *("aten.matmul", "aten.mm", "aten.bmm", "aten.linear", "aten.einsum", "aten.addmm"),
        *("aten.baddbmm", "aten.conv1d", "aten.conv2d"),
    }
)
#: Draws around the numbers of their first operand.
_AROUND_VALUES: Final = (aten.normal.Tensor_Tensor, aten.normal.Tensor_float)
#: Operators that keep numbers around 0.
_SCALES: Final = frozenset({"aten.neg", "aten.mul", "aten.div", "aten._to_copy", "aten.clone"})
#: Draws of a dropout, whose mean is the input.
DROPOUTS: Final = frozenset(
    {
        *("aten.dropout", "aten.native_dropout", "aten.feature_dropout"),
        "aten.scaled_dot_product_attention",
    }
)
_PERMUTATION: Final = "a permutation that is drawn has no mean"
#: Draws that choose, and why no mean can replace them.
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
#: Operators that move, add or multiply numbers.
_MOVED: Final = frozenset(
    {
        *("aten.mul", "aten.div", "aten.add", "aten.sub", "aten.neg", "aten._to_copy"),
        *("aten.clone", "aten.expand", "aten.view", "aten.reshape", "aten.unsqueeze"),
        *("aten.squeeze", "aten.permute", "aten.transpose", "aten.slice", "aten.select"),
    }
)


def without_mean(graph: Graph) -> Iterator[tuple[Node, str]]:
    """Yields the calls of a graph that no mean can replace, with a clause that says why."""
    for choice in _choices(graph):
        sorts = operator_name(choice) in _SORTS
        yield choice, _PERMUTATION if sorts else "nothing but random numbers decides its result"
    for draw in find_draws(graph):
        name = operator_name(draw)
        if name in _CHOOSING:
            yield draw, _CHOOSING[name]
        elif name == "aten.bernoulli" and (reader := _reads_as_truth(draw)):
            yield draw, f"{operator_name(reader)} chooses by that coin"
        elif name not in DROPOUTS and name not in _KNOWN:
            yield draw, "the distribution has no mean"


def _reads_as_truth(draw: Node) -> Node | None:
    """Returns the reader of a coin that neither adds nor multiplies; None without one."""
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


def _choices(graph: Graph) -> Iterator[Node]:
    """Yields the calls that choose by numbers that a draw reaches and no input does.

    This holds also where some of the numbers are drawn, as in ``noise.masked_fill(dropped, 2.0)``
    with an input's mask; where an input only scales drawn numbers around 0, or is rotated by them;
    and where a draw alone is compared with an input: a coin, or a drawn row.
    """
    drawn: set[Node] = set()
    given: set[Node] = set()
    partly: set[Node] = set()
    around_0: set[Node] = set()
    weights = {node for node in graph.nodes if node.op == "placeholder" and _is_weight(node)}
    for node in graph.nodes:
        name, sources = operator_name(node), node.all_input_nodes
        if draws(node):
            drawn.add(node)
            around_0 |= {node} if _is_around_0(node) else set()
            carries = name in DROPOUTS or is_call(node, *_AROUND_VALUES)
            given |= {node} if carries and given & {*sources} else set()
            continue
        if node.op == "placeholder" and node not in weights:
            given.add(node)
        elif name not in _OF_A_SHAPE:
            drawn |= {node} if drawn & {*sources} else set()
            given |= {node} if given & {*sources} else set()
        if node not in drawn or node.op != "call_function":
            continue
        alone = (drawn - given) | partly
        if name in _CHOICES:
            decides = sources if name in _COMPARES else sources[:1]
            if node not in given or alone & {*decides}:
                yield node
        elif node in given:
            partly |= {node} if _is_partly(node, sources, alone, around_0, given) else set()
        elif name in PLACED | _SCALES and len(sources) == 1 and {*sources} <= around_0:
            around_0.add(node)


def _is_partly(
    node: Node, sources: list[Node], alone: set[Node], around_0: set[Node], given: set[Node]
) -> bool:
    """Returns whether a draw alone decides some numbers of a value of an input and a draw."""
    name = operator_name(node)
    mixed = alone & {*sources}
    if not mixed:
        return False
    if name in _READS:
        return sources[0] in alone
    if name in _TURNS or name in _TAKES_EACH:
        return True
    others = [source for source in sources if source not in alone]
    if name == "aten.mul" and (around_0 & mixed or all(map(_is_truth, others))):
        return True
    if name in ("aten.add", "aten.sub", "aten.mul", "aten.div"):
        return not given & {*others}
    target: Any = node.target
    return len(sources) == 1 and (name in PLACED or torch.Tag.pointwise in target.tags)


def _is_around_0(draw: Node) -> bool:
    """Returns whether what is drawn lies around 0."""
    name = operator_name(draw)
    if name == "aten.normal_functional":
        return bool(argument(draw, "mean") == 0)
    if name == "aten.uniform":
        return bool(argument(draw, "from") == -argument(draw, "to"))
    return name in ("aten.randn", "aten.randn_like")


def _is_truth(node: Node) -> bool:
    """Returns whether a value is made of truth values, as the factor that a mask is."""
    while is_call(node, aten._to_copy.default) or operator_name(node) in PLACED:
        node = operand(node)
    return dtype_of(node) == torch.bool


def _is_weight(node: Node) -> bool:
    """Returns whether a placeholder is a lifted parameter, buffer or constant, and no input."""
    return node.name.startswith(("p_", "b_", "c_"))
