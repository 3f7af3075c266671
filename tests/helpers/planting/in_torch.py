"""Plants faults in the graphs of torch."""

from __future__ import annotations

import copy
import math
import operator
import random
from collections.abc import Iterator
from typing import Any

import torch
from helpers.planting.plants import How, Place, factors, faults_of_value
from torch import Tensor
from torch.fx import GraphModule, Node

from tokexport.graph_passes.torch_passes.graph.editor import STANDS_FOR, aten

_SWAPS = {
    *(aten.sub.Tensor, aten.div.Tensor, aten.where.self, aten.bmm.default, aten.matmul.default),
    *(aten.gt.Tensor, aten.lt.Tensor, aten.ge.Tensor, aten.le.Tensor, aten.cat.default),
}
_ORDERS = {aten.sort.stable, aten.sort.default, aten.topk.default, aten.max.dim, aten.min.dim}
_NORMS = {aten.layer_norm.default, aten.native_layer_norm.default}
_READERS = ("gather", "index", "scatter", "embedding", "tokens")


def faults_in(module: GraphModule, draw: random.Random) -> list[tuple[str, str, How]]:
    """Returns every fault (node, kind, how) that a graph can have.

    Args:
        module: An unlifted program.
        draw: Chooses the channel, row or class of each.
    """
    found: list[tuple[str, str, How]] = []
    for node in module.graph.nodes:
        place = _place(module, node)
        if place is not None and node.users:
            found += [(node.name, *one) for one in faults_of_value(place, draw)]
        if node.op == "call_function":
            found += [(node.name, *one) for one in _faults_of_call(node)]
    return found + [*_inputs_swapped(module)]


def planted(module: GraphModule, node: str, how: How) -> GraphModule:
    """Returns a copy of an unlifted program with a fault in it; weights are shared.

    Args:
        module: The right program.
        node: The node that it is planted in.
        how: What is done.
    """
    own = GraphModule(module, copy.deepcopy(module.graph))
    (found,) = (one for one in own.graph.nodes if one.name == node)
    match how["change"]:
        case "arguments":
            _reorder(found, how["order"])
        case "argument":
            found.args, found.kwargs = _with_argument(found, how["place"], how["value"])
        case "ties":
            _turn_ties(own, found, how)
        case "inputs":
            (other,) = (one for one in own.graph.nodes if one.name == how["other"])
            _swap_users(found, other)
        case _:
            _change_value(own, found, how)
    own.graph.lint()
    own.recompile()
    return own


def _value(module: GraphModule, node: Node) -> Tensor | None:
    if node.op == "get_attr":
        *path, name = str(node.target).split(".")
        value = getattr(module.get_submodule(".".join(path)), name)
    else:
        value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def _place(module: GraphModule, node: Node) -> Place | None:
    value = _value(module, node)
    if value is None or node.op == "output":
        return None
    dtype = "float" if value.dtype == torch.float32 else "other"
    dtype = {torch.bool: "bool", torch.int64: "int"}.get(value.dtype, dtype)
    readers = [_name(user) for user in node.users]
    weight = node.op == "get_attr"
    held = value if weight and dtype == "float" else torch.zeros(1)
    return Place(
        node.name,
        tuple(value.shape),
        dtype,
        _name(node),
        weight=weight,
        output=any(user.op == "output" for user in node.users),
        index=node.op == "call_function" and any(w in name for name in readers for w in _READERS),
        fills=bool((held.abs() > 1e4).any()) and bool((held == 0).any()),
        averaged=_averaged(node),
    )


def _name(node: Node) -> str:
    return str(node.target) if node.op == "call_function" else ""


def _averaged(node: Node) -> int:
    if node.target not in (aten.mean.dim, aten.mean.default):
        return 0
    given, value = node.args[0], node.meta["val"]
    assert isinstance(given, Node)
    return int(given.meta["val"].numel() // max(value.numel(), 1))


def _faults_of_call(node: Node) -> Iterator[tuple[str, How]]:
    if node.target in _SWAPS and (order := _other_order(node)):
        yield "operands swapped", {"change": "arguments", "order": order}
    if node.target == aten.gelu.default:
        yield "an approximation", {"change": "argument", "place": "approximate", "value": "tanh"}
    if node.target in (aten.softmax.int, aten._softmax.default):
        ndim = node.meta["val"].ndim
        axis = int(node.args[1]) % ndim  # type: ignore[arg-type]
        if ndim > 2:
            yield "a wrong axis", {"change": "argument", "place": 1, "value": (axis + 1) % ndim}
    for position, value in enumerate(node.args):
        if isinstance(value, float) and value != 0:
            yield from _faults_of_number(node, position, value)
    for name, value in node.kwargs.items():
        if isinstance(value, float) and value != 0:
            yield "a constant stale by 1 %", _argument(name, value * 1.01)
    if "slice" in _name(node) and isinstance(node.args[2], int) and len(node.args) > 3:
        axis, start, end = node.args[1:4]
        assert isinstance(axis, int)
        assert isinstance(start, int)
        assert isinstance(end, int)
        if start > 0 and end - start == node.meta["val"].shape[axis]:
            how = {"change": "slice", "start": start - 1, "end": end - 1}
            yield "an index off by one", how
    if node.target in _ORDERS:
        yield "an unstable order", {"change": "ties"}


def _faults_of_number(node: Node, position: int, value: float) -> Iterator[tuple[str, How]]:
    if node.target in _NORMS:
        yield "an eps", _argument(position, value * 100)
    elif not math.isfinite(value) or abs(value) >= 1e4:
        yield "a fill moved", _argument(position, math.copysign(10.0, value))
    elif abs(value) <= 1e-4:
        yield "an eps", _argument(position, value * 100)
    else:
        yield "a constant stale by 1 %", _argument(position, value * 1.01)


def _argument(place: int | str, value: float) -> How:
    return {"change": "argument", "place": place, "value": value}


def _other_order(node: Node) -> list[int] | None:
    """Returns the operands in an order in which the call still gives that shape; None for none."""
    if node.target == aten.cat.default:
        parts = node.args[0]
        assert isinstance(parts, list | tuple)
        return [*range(1, len(parts)), 0] if len(parts) > 1 else None
    first = 1 if node.target == aten.where.self else 0
    pair = node.args[first : first + 2]
    if not all(isinstance(one, Node) and "val" in one.meta for one in pair):
        return None
    shapes = [one.meta["val"].shape for one in pair]  # type: ignore[union-attr]
    if node.target in (aten.bmm.default, aten.matmul.default) and (
        shapes[0] != shapes[1] or shapes[0][-1] != shapes[0][-2]
    ):
        return None
    return [0, 2, 1] if first else [1, 0]


def _inputs_swapped(module: GraphModule) -> Iterator[tuple[str, str, How]]:
    inputs = [(node, node.meta["val"]) for node in module.graph.find_nodes(op="placeholder")]
    for position, (node, value) in enumerate(inputs):
        for other, same in inputs[position + 1 :]:
            if (value.shape, value.dtype) == (same.shape, same.dtype):
                yield node.name, "two inputs swapped", {"change": "inputs", "other": other.name}


def _reorder(node: Node, order: list[int]) -> None:
    if node.target == aten.cat.default:
        parts = node.args[0]
        assert isinstance(parts, list | tuple)
        node.args = ([parts[one] for one in order], *node.args[1:])
    else:
        node.args = (*(node.args[one] for one in order), *node.args[len(order) :])


def _with_argument(node: Node, place: int | str, value: Any) -> tuple[Any, Any]:
    if isinstance(place, str):
        return node.args, {**node.kwargs, place: value}
    return (*node.args[:place], value, *node.args[place + 1 :]), node.kwargs


def _swap_users(one: Node, other: Node) -> None:
    users, others = list(one.users), list(other.users)
    for user in {*users, *others}:
        user.args = torch.fx.map_arg(user.args, lambda n: {one: other, other: one}.get(n, n))
        user.kwargs = torch.fx.map_arg(user.kwargs, lambda n: {one: other, other: one}.get(n, n))


class _Behind:
    """Puts calls behind a node, whose own value they stand for."""

    def __init__(self, module: GraphModule, node: Node) -> None:
        self._module, self._node = module, node
        inputs = module.graph.find_nodes(op="placeholder")
        self._last = inputs[-1] if node in inputs else node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        with self._module.graph.inserting_after(self._last):
            self._last = self._module.graph.call_function(target, args, kwargs)
        meta = dict(self._node.meta)
        meta["val"] = _value(self._module, self._node)
        meta[STANDS_FOR] = (self._node.name, *self._node.meta.get(STANDS_FOR, ()))
        self._last.meta = meta
        return self._last

    def constant(self, tensor: Tensor) -> Node:
        name = f"planted_{len(self._module.graph.nodes)}"
        self._module.register_buffer(name, tensor)
        with self._module.graph.inserting_after(self._last):
            self._last = self._module.graph.get_attr(name)
        self._last.meta["val"] = tensor
        return self._last


def _change_value(module: GraphModule, node: Node, how: How) -> None:
    users = list(node.users)
    behind = _Behind(module, node)
    match how["change"]:
        case "times":
            value = _value(module, node)
            assert value is not None
            numbers = torch.tensor(factors(how, value.shape))
            if "axis" in how:
                numbers = numbers.reshape([-1, *[1] * (value.ndim - 1 - how["axis"])])
            else:
                numbers = numbers.reshape(())
            new = behind.call(aten.mul.Tensor, node, behind.constant(numbers))
        case "take":
            index = behind.constant(torch.tensor(how["index"]))
            new = behind.call(aten.index_select.default, node, how["axis"], index)
        case "bf16":
            low = behind.call(aten._to_copy.default, node, dtype=torch.bfloat16)
            new = behind.call(aten._to_copy.default, low, dtype=torch.float32)
        case "not":
            new = behind.call(aten.logical_not.default, node)
        case "back":
            new = behind.call(aten.clamp.default, behind.call(aten.sub.Tensor, node, 1), 0)
        case "slice":
            node.args = (*node.args[:2], how["start"], how["end"], *node.args[4:])
            return
        case _:
            raise ValueError(how["change"])
    for user in users:
        user.replace_input_with(node, new)


def _turn_ties(module: GraphModule, node: Node, how: How) -> None:
    """Lets the higher index come first among equals."""
    given = node.args[0]
    assert isinstance(given, Node)
    value = given.meta["val"]
    axis = _axis_of(node, value.ndim)
    turned = _Behind(module, given).call(aten.flip.default, given, [axis])
    node.replace_input_with(given, turned)
    for user in [user for user in node.users if user.target is operator.getitem]:
        if user.args[1] == 1:
            readers = [*user.users]
            last = value.shape[axis] - 1
            new = _Behind(module, user).call(aten.rsub.Scalar, user, last)
            for reader in readers:
                reader.replace_input_with(user, new)


def _axis_of(node: Node, ndim: int) -> int:
    schema = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    place = schema.index("dim")
    named = node.kwargs.get("dim", node.args[place] if place < len(node.args) else -1)
    assert isinstance(named, int)
    return named % ndim
