"""Makes inputs at the edges of what a model can meet, which no trace and no sample shows.

Each kind is one batch. Floating inputs take its values; whole numbers stay those of the batch that
it is made from, except in the kinds that are about them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from torch import Tensor
from torch.fx import GraphModule, Node

from tokexport.exporter.inputs import Batches, synthetic_inputs
from tokexport.graph_passes.torch_passes.calls import is_call, is_tensor, operand, shape_of
from tokexport.graph_passes.torch_passes.editor import aten
from tokexport.runtimes.base import Array
from tokexport.runtimes.manifest import TensorSpec

#: How many times as large, and as small, as a normal input.
LARGE: Final = 1e3
TINY: Final = 1e-6
_BYTES: Final = "darkest and brightest bytes"
#: The kinds whose values are none that real data have.
EXTREME: Final = ("zeros", "a constant", "large values", "tiny values", _BYTES)
#: What a constant input holds.
_CONSTANT: Final = 0.5
#: Where whole numbers stop being exact: in bfloat16, float16, float32, int32, float64, int64.
RUNGS: Final = (2**8, 2**11, 2**24, 2**31 - 1, 2**53, 2**62 + 1)
#: What only views, moves or types an index on its way into a table.
_PASSES_ON: Final = (
    aten.view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.slice.Tensor,
    aten.select.int,
    aten.permute.default,
    aten.transpose.int,
    aten.clone.default,
    aten._to_copy.default,
    aten.to.dtype,
)
#: What picks along an axis at an index.
_PICKS: Final = (aten.index_select.default, aten.gather.default)


def edge_inputs(
    specs: Sequence[TensorSpec], first: Mapping[str, Array], tables: Mapping[str, int], seed: int
) -> dict[str, dict[str, Array]]:
    """Returns a batch for every kind of edge that the inputs have.

    Args:
        specs: The model's inputs; the shapes include the batch.
        first: A batch that the model takes.
        tables: The sizes of the tables that whole numbers are an index of, by input.
        seed: A seed that no other inputs were drawn from.
    """
    found: dict[str, dict[str, Array]] = {}
    floats = [spec.name for spec in specs if spec.dtype.startswith("float")]
    pixels = [spec.name for spec in specs if spec.dtype == "uint8" and spec.name not in tables]
    fresh = synthetic_inputs(specs, 1, seed)
    drawn = dict(first) | {name: fresh.arrays[name][0] for name in (*floats, *pixels)}
    for name, top in tables.items():
        ends = between(first[name], 0, top - 1)
        found[f"{name} up to {top - 1}"] = dict(drawn) | {name: ends}
    masks = [name for name, array in first.items() if name not in tables and _is_mask(array)]
    if masks:
        for kind, mask in (
            ("every other of a mask", _every_other),
            ("masks turned over", lambda array: array == 0),
            ("empty masks", np.zeros_like),
        ):
            found[kind] = drawn | {
                name: mask(first[name]).astype(first[name].dtype) for name in masks
            }
    if pixels:
        found[_BYTES] = drawn | {name: 255 * _every_other(first[name]) for name in pixels}
    if floats or pixels:
        found["another seed"] = drawn
    for kind, change in (
        ("zeros", np.zeros_like),
        ("a constant", lambda array: np.full_like(array, _CONSTANT)),
        ("large values", lambda array: array * array.dtype.type(LARGE)),
        ("tiny values", lambda array: array * array.dtype.type(TINY)),
        ("duplicates", _duplicated),
    ):
        changed = {name: change(drawn[name]) for name in floats}
        if any(not np.array_equal(changed[name], drawn[name]) for name in floats):
            found[kind] = drawn | changed
    return found


def joined(names: Sequence[str], kinds: Mapping[str, Mapping[str, Array]]) -> Batches:
    """Returns the batches of some kinds, one each."""
    arrays = {
        name: np.stack([batch[name] for batch in kinds.values()]) if kinds else np.zeros((0, 1))
        for name in names
    }
    return Batches(tuple(names), arrays, len(kinds), None, "edges", tuple(kinds))


def _is_mask(array: Array) -> bool:
    """Tells whether an input holds truth values, by its type or by what it holds."""
    return array.dtype == bool or (array.dtype.kind in "iu" and bool(np.isin(array, (0, 1)).all()))


def _every_other(array: Array) -> Array:
    """Returns 1 and 0 by turns, 1 first, in an array's shape and type."""
    by_turns = (np.arange(array.size) + 1) % 2
    return by_turns.astype(array.dtype).reshape(array.shape)


@dataclass(frozen=True)
class Table:
    """What whole numbers are an index of.

    Attributes:
        size: How many entries it has.
        from_end: Whether negative numbers count from its end.
        whole: Whether every number of the input is such an index, and not a part of them.
    """

    size: int
    from_end: bool = False
    whole: bool = True


def tables_of(captured: GraphModule, batches: Batches) -> dict[str, list[Table]]:
    """Returns the tables that each input of whole numbers is an index of, where it is of some.

    Args:
        captured: The traced model, unlifted.
        batches: Its inputs.
    """
    found: dict[str, list[Table]] = {}
    nodes = captured.graph.find_nodes(op="placeholder")
    for name, node in zip(batches.names, nodes, strict=True):
        if batches.arrays[name].dtype.kind not in "iu":
            continue
        if tables := [*_tables(node)]:
            found[name] = tables
    return found


def index_ranges(tables: Mapping[str, Sequence[Table]]) -> dict[str, tuple[int, int]]:
    """Returns which whole numbers eager takes of inputs that are an index, (lowest, highest)."""
    found = {}
    for name, each in tables.items():
        if whole := [table for table in each if table.whole]:
            low = max(-table.size if table.from_end else 0 for table in whole)
            found[name] = low, min(table.size for table in whole) - 1
    return found


def _tables(node: Node) -> Iterator[Table]:
    """Yields the tables that a value is an index of, however it gets there."""
    for user in node.users:
        if is_call(user, aten.embedding.default) and user.args[1] is node:
            yield Table(shape_of(operand(user, "weight"))[0])
        elif is_call(user, *_PICKS) and user.args[2] is node:
            yield Table(shape_of(operand(user))[_whole(user.args[1])])
        elif is_call(user, aten.index.Tensor) and isinstance(user.args[1], list | tuple):
            for axis, index in enumerate(user.args[1]):
                if index is node:
                    yield Table(shape_of(operand(user))[axis], from_end=True)
        elif is_call(user, *_PASSES_ON) and is_tensor(user) and not _is_floating(user):
            cuts = is_call(user, aten.slice.Tensor, aten.select.int)
            for table in _tables(user):
                yield replace(table, whole=table.whole and not cuts)


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value


def _is_floating(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def between(like: Array, low: int, high: int) -> Array:
    """Returns whole numbers of an array's shape and type from one end to the other."""
    steps = np.linspace(0, 1, max(like.size, 2))[: like.size]
    values = [low + int((high - low) * float(step)) for step in steps]
    if values:
        values[0] = high
    if len(values) > 1:
        values[-1] = low
    if len(values) > 2:
        values[1] = high - 1
    return np.array(values, dtype=like.dtype).reshape(like.shape)


def _duplicated(array: Array) -> Array:
    """Repeats the first half of the last axis, and of the one before it where it has one of many.

    An image becomes four times its first quarter, a row of tokens one of equal pairs.
    """
    for axis in (-1, -2) if array.ndim > 3 else (-2,):
        if array.ndim >= -axis + 1 and array.shape[axis] > 1:
            half = array.shape[axis] // 2
            index = np.arange(array.shape[axis]) % half
            array = np.take(array, index, axis=axis)
    return array
