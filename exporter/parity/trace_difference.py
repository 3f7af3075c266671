"""Finds the user's first line at which a traced graph differs from eager.

Both run on one input. Eager's values are noted as PyTorch computes them, each operator's operands
and results with the line they came from; the graph's are looked up among them::

    return x * (1.5 if torch.compiler.is_compiling() else 3.0)
        trace: mul(x, 1.5), a value that eager has nowhere       eager, same line: mul(x, 3.0)

A value is kept as its mean size and a few of its numbers.
"""

from __future__ import annotations

import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.proof import ParityError
from tokexport.graph_passes.stack_traces import own_frames, user_frames
from tokexport.runtimes.arrays import Array

#: How many numbers of a value are compared, and how far they may be off, as a share of its size.
_KEPT: Final = 64
_TOLERANCE: Final = 1e-4
#: The stage that runs the traced graph by itself.
_STEP: Final = "captured"


@dataclass
class _Values:
    """The values that were computed, by shape and type, and the calls by line."""

    kept: dict[Any, list[Array]] = field(default_factory=lambda: defaultdict(list))
    calls: dict[str, list[tuple[str, tuple[float, ...]]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, value: Any) -> None:
        """Keeps the tensors in a value."""
        for one in pytree.tree_leaves(value):
            if isinstance(one, Tensor):
                key, numbers = _numbers(one)
                self.kept[key].append(numbers)

    def has(self, value: Tensor) -> bool:
        """Returns whether a value was computed anywhere, up to rounding."""
        key, numbers = _numbers(value)
        size = _TOLERANCE * max(numbers[0], 1e-30)
        return any(
            np.allclose(numbers, other, rtol=0, atol=size, equal_nan=True)
            for other in self.kept[key]
        )


class _Eager(TorchDispatchMode):
    """Records the values that a model computes while it runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = _Values()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operator and notes its operands, its result and its line."""
        self.values.add((args, kwargs))
        result = func(*args, **(kwargs or {}))
        self.values.add(result)
        stack = takewhile(
            lambda at: at[0].f_code.co_filename != __file__,
            ((frame, line) for frame, line in _behind_this_file()),
        )
        if frames := user_frames([*stack][::-1]):
            place = f"{frames[-1].file}:{frames[-1].line}"
            self.values.calls[place].append((_name(func), _constants((args, kwargs))))
        return result


def _behind_this_file() -> Iterator[tuple[Any, int]]:
    """Yields the frames of the stack, from the caller of the operator outwards."""
    stack = [*traceback.walk_stack(None)]
    while stack and stack[0][0].f_code.co_filename == __file__:
        stack.pop(0)
    yield from stack


class _Traced(Interpreter):
    """Runs a graph and finds the first of its values that eager has nowhere."""

    def __init__(self, module: GraphModule, eager: _Values) -> None:
        super().__init__(module)
        self._eager = eager
        self.found: Node | None = None

    def run_node(self, n: Node) -> Any:
        """Runs a node; checks its result where another line or an output reads it."""
        result = super().run_node(n)
        if self.found is None and n.op == "call_function" and own_frames(n) and _leaves(n):
            tensors = [one for one in pytree.tree_leaves(result) if isinstance(one, Tensor)]
            if tensors and not any(map(self._eager.has, tensors)):
                self.found = n
        return result


@dataclass(frozen=True)
class TraceDifference:
    """The first node of a traced graph that gives what eager computes nowhere.

    Attributes:
        node: It.
        said: What it fixed, a clause.
    """

    node: Node
    said: str


def first_difference(
    captured: GraphModule, model: FlatModel, tensors: Sequence[Tensor]
) -> TraceDifference | None:
    """Returns where a traced graph differs from eager on one input; None if nowhere.

    Args:
        captured: The traced graph, unlifted.
        model: The model it was traced from; its state is put back.
        tensors: The input.
    """
    with torch.no_grad(), evaluation(model):
        with _Eager() as eager:
            model(*(one.clone() for one in tensors))
        traced = _Traced(captured, eager.values)
        traced.run(*tensors)
    node = traced.found
    if node is None:
        return None
    frame = own_frames(node)[-1]
    calls = eager.values.calls[f"{frame.file}:{frame.line}"]
    return TraceDifference(node, f"First at {frame}: {_fixed(node, calls)}.")


@contextmanager
def differences_named(captured: GraphModule, model: FlatModel, batches: Batches) -> Iterator[None]:
    """Adds the first line at which the traced graph differs from eager to its failure.

    Raises:
        ParityError: As inside the context, with the line.
    """
    try:
        yield
    except ParityError as error:
        failed = error.stages[-1]
        if failed.name == _STEP:
            worst = [int(one.index[0]) for one in failed.worst.values()]
            order = dict.fromkeys([*worst, *failed.outside, 0])
            rows = {place: batch for place, batch in enumerate(batches) if place in order}
            found = (first_difference(captured, model, tensors_of(rows[place])) for place in order)
            if first := next(filter(None, found), None):
                error.where += f"\n{first.said}"
        raise


def _fixed(node: Node, calls: Sequence[tuple[str, tuple[float, ...]]]) -> str:
    """Returns what the trace and eager have at the line of a node."""
    if not calls:
        return "eager computes nothing there, so a branch of the code was fixed"
    line = own_frames(node)[-1]
    for at in (one for one in node.graph.nodes if own_frames(one)[-1:] == [line]):
        own = _constants((at.args, at.kwargs))
        others = [numbers for name, numbers in calls if name == _name(at.target)]
        for numbers in [] if own in others else others:
            if len(numbers) == len(own):
                one, other = next(
                    pair for pair in zip(own, numbers, strict=True) if pair[0] != pair[1]
                )
                return f"the trace has fixed {one:g} there, where eager has {other:g}"
    if any(part.op == "get_attr" for part in node.all_input_nodes):
        return f"{_name(node.target)} reads a tensor there that the trace has fixed"
    return f"{_name(node.target)} gives numbers there that eager does not compute"


def _leaves(node: Node) -> bool:
    """Returns whether a value is read at another line, or is an output."""
    line = own_frames(node)[-1]
    return any(user.op == "output" or own_frames(user)[-1:] != [line] for user in node.users)


def _name(target: Any) -> str:
    return str(target).rpartition("::")[2].partition(".default")[0]


def _constants(arguments: Any) -> tuple[float, ...]:
    """Returns the numbers among the arguments of a call."""
    leaves = pytree.tree_leaves(arguments, is_leaf=lambda one: isinstance(one, Node))
    return tuple(float(one) for one in leaves if isinstance(one, int | float))


def _numbers(value: Tensor) -> tuple[Any, Array]:
    """Returns the shape and type of a tensor, and its mean size before a few of its numbers."""
    key = (tuple(value.shape), value.dtype)
    flat = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    wide = flat.detach().reshape(-1).double()
    if not wide.numel():
        return key, np.zeros(1)
    places = torch.linspace(0, wide.numel() - 1, _KEPT).long()
    size = wide.abs().nan_to_num(0.0, 0.0, 0.0).mean()
    numbers: Array = torch.cat([size[None], wide.mean()[None], wide[places]]).numpy()
    return key, numbers
