"""Folds a Fourier transform and the linear operators around it into one constant matrix.

Before → after::

    irfft(w₂ · fft(cat([x[:, ::2], x[:, 1::2].flip(1)], 1))[:, :K], …)   →  matmul(M (K, N), x)

At a static size every chain of this form (a DCT, its truncation, its inverse) is linear in x and
acts along one axis, so it is a matrix. The chain is grown from each transform over linear operators
whose other operands are constants, in both directions, as far as one real tensor goes in and one
comes out. The matrix is read off by running the chain on unit vectors in float64, and held to the
chain on random numbers; where it is no product along one axis, as with a transform of tokens and
channels at once, everything stays. Complex numbers and DFT are slow or missing in runtimes:
TensorRT has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    is_tensor,
    operator_name,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.match.constant_values import (
    ConstantValues,
    reads_only_shape,
)

#: Calls that are linear in the operands of a chain, whichever those are.
_LINEAR: Final = (
    *(aten.slice.Tensor, aten.select.int, aten.flip.default, aten.roll.default),
    *(aten.cat.default, aten.stack.default, aten.neg.default, aten.clone.default),
    *(aten.view_as_real.default, aten.view_as_complex.default, aten.complex.default),
    *(aten.real.default, aten.imag.default, aten.reshape.default, aten.view.default),
    *(aten.permute.default, aten.transpose.int, aten.unsqueeze.default, aten.expand.default),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims),
    *(aten.slice_scatter.default, aten.select_scatter.default, aten.copy.default),
    *(aten.sum.dim_IntList, aten.mean.dim),
)
#: Calls that are linear where one of the two operands is a constant.
_SCALINGS: Final = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
_SUMS: Final = (aten.add.Tensor, aten.sub.Tensor)
#: The largest matrix that is made, in elements.
_LARGEST: Final = 1 << 22


@dataclass(frozen=True)
class _Chain:
    """A linear part of the graph.

    Attributes:
        nodes: Its calls, in the order of the graph.
        source: The real tensor that goes in.
        result: The call whose real tensor comes out.
    """

    nodes: tuple[Node, ...]
    source: Node
    result: Node


class FoldFourier(TorchPass):
    """Turns chains with a Fourier transform into products with a constant."""

    name: ClassVar[str] = "fold transforms"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many chains it folded."""
        constants = ConstantValues()
        changed = 0
        done: set[Node] = set()
        for node in list(edit.graph.nodes):
            if node in done or not _is_transform(node) or constants.of(node) is not None:
                continue
            chain = _grown(edit, node, constants)
            if chain is None:
                continue
            done.update(chain.nodes)
            found = _matrix(chain, constants)
            if found is not None:
                _replace(edit, chain, *found)
                changed += 1
        return changed


def _is_transform(node: Node) -> bool:
    name = operator_name(node).removeprefix("aten.") if node.op == "call_function" else ""
    return name.startswith(("fft_", "_fft_")) and is_tensor(node)


def _varying(node: Node, constants: ConstantValues) -> list[Node]:
    """Returns the operands of a call that are no constants."""
    return [part for part in node.all_input_nodes if constants.of(part) is None]


def _is_linear(node: Node, constants: ConstantValues) -> bool:
    """Returns whether a call is linear in its operands that are no constants."""
    if node.op != "call_function" or not is_tensor(node):
        return False
    varying = _varying(node, constants)
    if _is_transform(node) or is_call(node, *_LINEAR):
        fixed = [constants.of(part) for part in node.all_input_nodes if part not in varying]
        return bool(varying) and all(part is None or not bool(part.any()) for part in fixed)
    if is_call(node, *_SCALINGS):
        divisor = is_call(node, aten.div.Tensor) and node.args[1] in varying
        return len(varying) == 1 and not divisor
    if is_call(node, *_SUMS):
        return all(part in varying for part in node.args[:2]) and argument(node, "alpha") == 1
    return False


def _grown(edit: Editor, seed: Node, constants: ConstantValues) -> _Chain | None:
    """Returns the largest chain around a transform with one input and one output."""
    members = {seed}
    best = _as_chain(edit, members, constants)
    while True:
        new = next(_next_backward(members, constants), None) or next(
            _next_forward(members, constants), None
        )
        if new is None:
            return best
        members.add(new)
        best = _as_chain(edit, members, constants) or best


def _readers(node: Node) -> set[Node]:
    """Returns the readers of a node's values."""
    return {user for user in node.users if not reads_only_shape(user)}


def _next_backward(members: set[Node], constants: ConstantValues) -> Iterator[Node]:
    """Yields operands that can join: linear, and read by nobody else."""
    for node in members:
        for part in _varying(node, constants):
            if part not in members and _is_linear(part, constants) and _readers(part) <= members:
                yield part


def _next_forward(members: set[Node], constants: ConstantValues) -> Iterator[Node]:
    """Yields readers that can join: linear in members alone."""
    for node in members:
        for user in node.users:
            if user in members or not _is_linear(user, constants):
                continue
            if all(part in members for part in _varying(user, constants)):
                yield user


def _as_chain(edit: Editor, members: set[Node], constants: ConstantValues) -> _Chain | None:
    ways_in = {part for node in members for part in _varying(node, constants)} - members
    ways_out = [node for node in members if not _readers(node) <= members]
    if len(ways_in) != 1 or len(ways_out) != 1:
        return None
    (source,), (result,) = ways_in, ways_out
    if not (dtype_of(source).is_floating_point and dtype_of(result).is_floating_point):
        return None
    return _Chain(tuple(node for node in edit.graph.nodes if node in members), source, result)


def _matrix(chain: _Chain, constants: ConstantValues) -> tuple[int, Tensor] | None:
    """Returns the axis that a chain acts along and its matrix, or None where it is none."""
    before, after = shape_of(chain.source), shape_of(chain.result)
    if len(before) != len(after):
        return None
    random = torch.randn(before, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        wanted = _run(chain, constants, random)
        for axis in range(len(before)):
            others = [a for a in range(len(before)) if a != axis]
            if any(before[a] != after[a] for a in others):
                continue
            if before[axis] * after[axis] > _LARGEST:
                continue
            matrix = _read_off(lambda x: _run(chain, constants, x), before, axis)
            found = torch.tensordot(random, matrix, dims=([axis], [1])).movedim(-1, axis)
            # Each number by the terms of its own sum: a large one does not hide a wrong one.
            terms = torch.tensordot(random.abs(), matrix.abs(), dims=([axis], [1]))
            terms = terms.movedim(-1, axis)
            if ((found - wanted).abs() <= 1e-9 * terms + 1e-12).all():
                return axis, matrix
    except (RuntimeError, TypeError, ValueError):  # an operator that does not run in float64
        return None
    return None


def _read_off(run: Callable[[Tensor], Tensor], shape: tuple[int, ...], axis: int) -> Tensor:
    """Returns the matrix (K, N) along an axis, by its results on unit vectors.

    As many unit vectors as there are positions of the other axes go through at once.
    """
    size = shape[axis]
    slots = max(1, prod(shape) // max(size, 1))
    columns = []
    for first in range(0, size, slots):
        count = min(slots, size - first)
        units = torch.zeros(slots, size, dtype=torch.float64)
        units[torch.arange(count), torch.arange(first, first + count)] = 1.0
        others = [n for a, n in enumerate(shape) if a != axis]
        answer = run(units.reshape(*others, size).movedim(-1, axis))
        columns.append(answer.movedim(axis, -1).reshape(slots, -1)[:count])
    return torch.cat(columns).T


def _run(chain: _Chain, constants: ConstantValues, x: Tensor) -> Tensor:
    """Runs a chain on x in float64."""
    values: dict[Node, Any] = {chain.source: x}

    def value_of(part: Node) -> Any:
        if part in values:
            return values[part]
        constant = constants.of(part)
        if constant is None:
            raise ValueError(f"{part.name} is no part of the chain")
        return constant.double() if constant.is_floating_point() else constant

    with torch.no_grad():
        for node in chain.nodes:
            target: Any = node.target
            args, kwargs = map_arg((node.args, node.kwargs), value_of)
            values[node] = target(*args, **kwargs)
    result: Tensor = values[chain.result]
    return result


def _replace(edit: Editor, chain: _Chain, axis: int, matrix: Tensor) -> None:
    """Makes the readers of a chain's result read the product instead."""
    rank = len(shape_of(chain.source))
    dtype = dtype_of(chain.source)
    with edit.before(chain.result):
        if axis == rank - 2:
            constant = edit.constant(matrix.to(dtype), wide=True)
            new = edit.call(aten.matmul.default, constant, chain.source)
        else:
            constant = edit.constant(matrix.T.contiguous().to(dtype), wide=True)
            order = [a for a in range(rank) if a != axis] + [axis]
            moved = edit.permute(chain.source, order)
            new = edit.call(aten.matmul.default, moved, constant)
            new = edit.permute(new, [order.index(a) for a in range(rank)])
    edit.replace(chain.result, new)
