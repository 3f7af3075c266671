"""Changes a traced graph while keeping every node's shape, dtype and source line known."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from tokexport.graph_passes.onnx_passes.graph.precision_roles import WIDE
from tokexport.graph_passes.pass_report import NonMatch
from tokexport.graph_passes.stack_traces import source_line
from tokexport.graph_passes.torch_passes.graph.calls import (
    CONSTANT,
    dtype_of,
    operator_name,
    shape_of,
    value,
)

#: The keys of a node's place in the user's code; copied to its replacement.
_ORIGIN = ("stack_trace", "nn_module_stack")

#: Under this key a node's meta names the values that it took the place of; they hold the same
#: numbers, possibly repeated over further axes.
STANDS_FOR: Final = "stands_for"

#: Under this key a node's meta says that a pass made it from its operand, which is not gone: a
#: negative or a transpose of scores.
DERIVED: Final = "derived"

#: Under this key the meta of a call says that a pass made it: it has no counterpart in eager.
MADE: Final = "made"

#: Under this key the meta of a match of every row names the values that hold the partner of each
#: row, where nothing but the pass ranked the rows.
PARTNERS: Final = "partners"

aten = torch.ops.aten


class Editor:
    """A graph under change: inserts calls whose result is known at once as a fake tensor.

    Attributes:
        graph: The graph.
        constants: The tensors of the constants that were added, by their names.
        at: The node that the pass looked at last; None before the first.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.constants: dict[str, Tensor] = {}
        self.at: Node | None = None
        self._left: list[NonMatch] = []
        self._fake_mode = _find_fake_mode(graph)
        self._origin: Node | None = None

    def begin(self) -> None:
        """Forgets what the pass before looked at and left."""
        self.at = None
        self._left.clear()

    def look_at(self, node: Node) -> None:
        """Notes the node that a pass is at, which an error of it then names."""
        self.at = node

    def leave(self, node: Node, why: str) -> None:
        """Notes why a pass leaves a node that it is for as it was.

        Args:
            node: The node.
            why: The precondition that fails, a clause: ``it returns complex numbers``.
        """
        self._left.append(NonMatch(node.name, operator_name(node), why, source_line(node)))

    @property
    def non_matches(self) -> tuple[NonMatch, ...]:
        """The nodes that the pass left."""
        return tuple(self._left)

    @contextmanager
    def before(self, node: Node) -> Iterator[None]:
        """Inserts what is called inside the block before ``node``, with its origin."""
        with self._at(node, node):
            yield

    @contextmanager
    def after(self, node: Node, origin: Node) -> Iterator[None]:
        """Inserts what is called inside the block right behind ``node``, with another's origin.

        The inputs of a graph stay in front: behind one of them means behind all of them.
        """
        successor = node.next
        while successor.op == "placeholder":
            successor = successor.next
        with self._at(successor, origin):
            yield

    @contextmanager
    def _at(self, successor: Node, origin: Node) -> Iterator[None]:
        outer, self._origin = self._origin, origin
        self.at = origin
        try:
            with self.graph.inserting_before(successor):
                yield
        finally:
            self._origin = outer

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Inserts a call; fails where torch would fail on these shapes and dtypes."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta[MADE] = True
        with self._fake_mode, torch.no_grad():
            node.meta["val"] = target(*map_arg(args, value), **map_arg(kwargs, value))
        if self._origin is not None:
            node.meta.update(
                {key: self._origin.meta[key] for key in _ORIGIN if key in self._origin.meta}
            )
        return node

    def derived(self, node: Node) -> Node:
        """Records that a call inserted by a pass only shows its operand in another form."""
        node.meta[DERIVED] = True
        return node

    def constant(self, tensor: Tensor, *, wide: bool = False) -> Node:
        """Adds a constant as a new first input of the graph; ``constants`` then names it.

        Args:
            tensor: Its value.
            wide: Whether what reads it stays in float32, whatever the precision asked for.
        """
        tensor = tensor.contiguous()  # torch.export saves no view well
        first = next(iter(self.graph.nodes))
        taken = {node.target for node in self.graph.find_nodes(op="placeholder")}
        names = map(f"{WIDE if wide else 'c_made_'}{{}}".format, count())
        name = next(name for name in names if name not in taken)
        with self.graph.inserting_before(first):
            node = self.graph.placeholder(name)
        with self._fake_mode:
            node.meta["val"] = self._fake_mode.from_tensor(tensor)
        node.meta[CONSTANT] = tensor
        self.constants[node.name] = tensor
        return node

    def item(self, node: Node, position: int) -> Node:
        """Inserts the selection of one of several results."""
        return self.call(operator.getitem, node, position)

    def view(self, node: Node, shape: Sequence[int]) -> Node:
        """Inserts a reshape, or nothing where the shape is that already."""
        if shape_of(node) == tuple(shape):
            return node
        return self.call(aten.reshape.default, node, [*shape])

    def expand(self, node: Node, shape: Sequence[int]) -> Node:
        """Inserts a broadcast, or nothing where the shape is that already."""
        if shape_of(node) == tuple(shape):
            return node
        return self.call(aten.expand.default, node, [*shape])

    def permute(self, node: Node, order: Sequence[int]) -> Node:
        """Inserts a permutation of the axes, or nothing where it changes nothing."""
        if list(order) == sorted(order):
            return node
        return self.call(aten.permute.default, node, [*order])

    def cut(self, node: Node, axis: int, start: int, stop: int) -> Node:
        """Inserts a slice of one axis, or nothing where it takes all of it."""
        if (start, stop) == (0, shape_of(node)[axis]):
            return node
        return self.call(aten.slice.Tensor, node, axis, start, stop)

    def replace(self, old: Node, new: Node) -> None:
        """Makes every user of ``old`` read ``new``, and removes the old node.

        It has no readers then, but torch keeps some unread nodes: those that might draw random
        numbers, like an attention with dropout.
        """
        if (shape_of(old), dtype_of(old)) != (shape_of(new), dtype_of(new)):
            raise AssertionError(
                f"{old.name} {shape_of(old)} {dtype_of(old)} cannot become "
                f"{new.name} {shape_of(new)} {dtype_of(new)}"
            )
        self.stand_for(new, old)
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    def stand_for(self, new: Node, old: Node) -> None:
        """Records that a value holds the numbers of another, removed or broadcast one."""
        given = new.meta.get(STANDS_FOR, ())
        new.meta[STANDS_FOR] = (*given, old.name, *old.meta.get(STANDS_FOR, ()))


def _find_fake_mode(graph: Graph) -> FakeTensorMode:
    for node in graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if isinstance(mode, FakeTensorMode):
            return mode
    return FakeTensorMode()
