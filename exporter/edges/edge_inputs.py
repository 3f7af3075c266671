"""Makes inputs at the edges: zeros, constants, large and tiny values, ends of types.

Each kind is one batch. Floating inputs take its values; whole numbers stay those of the batch that
it is made from, except in the kinds that are about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from tokexport.exporter.edges.index_tables import Indices
from tokexport.exporter.inputs.batches import Batches, synthetic_inputs
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import TensorSpec

#: How many times as large, and as small, as a normal input.
LARGE: Final = 1e3
TINY: Final = 1e-6
_BYTES: Final = "darkest and brightest bytes"
#: The kinds whose values do not occur in real data.
EXTREME: Final = ("zeros", "a constant", "large values", "tiny values", _BYTES)
#: What a constant input holds.
_CONSTANT: Final = 0.5
#: Where whole numbers stop being exact: in bfloat16, float16, float32, int32, float64, int64.
RUNGS: Final = (2**8, 2**11, 2**24, 2**31 - 1, 2**53, 2**62 + 1)


def edge_inputs(
    specs: Sequence[TensorSpec],
    first: Mapping[str, Array],
    tables: Mapping[str, Indices],
    seed: int,
) -> dict[str, dict[str, Array]]:
    """Returns a batch for every kind of edge that the inputs have.

    Args:
        specs: The model's inputs; the shapes include the batch.
        first: A batch that the model takes.
        tables: Which whole numbers are an index of a table, by input.
        seed: A seed that no other inputs were drawn from.
    """
    found: dict[str, dict[str, Array]] = {}
    floats = [spec.name for spec in specs if spec.dtype.startswith("float")]
    pixels = [spec.name for spec in specs if spec.dtype == "uint8" and spec.name not in tables]
    fresh = synthetic_inputs(specs, 1, seed)
    drawn = dict(first) | {name: fresh.arrays[name][0] for name in (*floats, *pixels)}
    for name, indices in tables.items():
        low, high = indices.ends
        found[f"{name} up to {high}"] = drawn | {name: indices.filled(first[name], _from_start)}
        if low < 0:
            found[f"{name} from {low}"] = drawn | {name: indices.filled(first[name], _from_end)}
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
    """Returns whether an input holds truth values, by its type or by what it holds."""
    return array.dtype == bool or (array.dtype.kind in "iu" and bool(np.isin(array, (0, 1)).all()))


def _every_other(array: Array) -> Array:
    """Returns 1 and 0 by turns, 1 first, in an array's shape and type."""
    by_turns = (np.arange(array.size) + 1) % 2
    return by_turns.astype(array.dtype).reshape(array.shape)


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


def _from_start(like: Array, low: int, high: int) -> Array:
    """Returns indices of all of a table, counted from its start."""
    return between(like, max(low, 0), high)


def _from_end(like: Array, low: int, high: int) -> Array:
    """Returns indices from the end of a table that takes negative ones, down to its first row."""
    if low >= 0:
        return between(like, low, high)
    found: Array = -1 - between(like, 0, -1 - low)
    return found


def _duplicated(array: Array) -> Array:
    """Repeats the first half of the last axis, and of the axis before it in images.

    An image becomes four times its first quarter, a row of tokens one of equal pairs.
    """
    for axis in (-1, -2) if array.ndim > 3 else (-2,):
        if array.ndim >= -axis + 1 and array.shape[axis] > 1:
            half = array.shape[axis] // 2
            index = np.arange(array.shape[axis]) % half
            array = np.take(array, index, axis=axis)
    return array
