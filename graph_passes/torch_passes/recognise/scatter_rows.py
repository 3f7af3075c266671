"""Brings every scatter and scatter reduction to ``scatter_tokens``.

Before → after::

    scatter_reduce(y, 1, rows[:, :, None].expand(B, K, C), x, "mean")
    scatter_add(y, 1, index, x), index_add(y, 1, rows, x)              →  scatter_tokens(y, rows, x,
    index_reduce(y, 1, rows, x, "mean")                                       mode, include_self)
    scatter(y, 1, index, x), y[arange(B)[:, None], rows] = x
    index_add(y.flatten(0, 1), 0, (rows + N * arange(B)[:, None]).flatten(), x.flatten(0, 1))

An index that differs by channel is laid out with one channel a row, (B·C, N, 1), so that no
element-wise reduction is left: the stock exporter writes ``mean`` as an overwrite, and TensorRT
takes no scatter reduction at all. Source of the meaning: torch.Tensor.scatter_reduce.

Integers that stay below 2²⁴, such as counts, are scattered as floats and cast back. Others have no
row form: theirs stay ``scatter_reduce``, which is exact in ONNX but for the mean; that becomes the
sum divided, rounding down as torch does, by the number of terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    dtype_of,
    is_call,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.match.broadcast import collapse, varying_axes
from tokexport.graph_passes.torch_passes.match.constant_values import ConstantValues
from tokexport.graph_passes.torch_passes.match.integer_bounds import LARGEST_EXACT, bounds_of
from tokexport.graph_passes.torch_passes.match.token_indices import (
    counted_from_start,
    is_index_tensor,
    layout_of_index,
    narrowed,
    read_batched_index,
    read_flat_rows,
)
from tokexport.graph_passes.torch_passes.recognise.gather_rows import why_no_index_of_rows

#: The names that the deprecated ``scatter(…, reduce=…)`` has for the modes.
_OLD_NAMES: Final = {"add": "sum", "multiply": "prod"}


@dataclass(frozen=True)
class Scatter:
    """A scatter in the one form that all spellings have in common.

    Attributes:
        data: What is written into.
        axis: The axis along which the index counts.
        index: Positions along that axis, of the rank of the data.
        source: What is written; at least as large as the index.
        mode: One of ``ops.MODES``.
        include_self: Whether the value that is there takes part in the reduction.
    """

    data: Node
    axis: int
    index: Node
    source: Node
    mode: str
    include_self: bool = True


class ScatterRows(TorchPass):
    """Finds scatters and gives those of floating-point numbers their row form."""

    name: ClassVar[str] = "scatter rows"
    comes_before: ClassVar[tuple[str, ...]] = ("recognise merges",)

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many scatters it changed."""
        changed = 0
        constants = ConstantValues()
        for node in list(edit.graph.nodes):
            read = _FORMS.get(node.target) if node.op == "call_function" else None
            if read is None:
                continue
            with edit.before(node):
                scatter = read(edit, node)
                new = None if scatter is None else _write(edit, node, scatter, constants)
            if new is not None:
                edit.replace(node, new)
                changed += 1
            else:
                edit.leave(node, why_no_rows(node))
        return changed


def why_no_rows(node: Node) -> str:
    """Says why a scatter writes no rows, a clause."""
    if not dtype_of(node).is_floating_point:
        return f"it writes {dtype_of(node)}, and rows are of floating-point numbers"
    if is_call(node, aten.index_put.default):
        return why_no_index_of_rows(node)
    return "its index is a single number, not a row of positions"


def _scatter_reduce(edit: Editor, node: Node) -> Scatter:
    scatter = _sourced(node, argument(node, "reduce"))
    return replace(scatter, include_self=argument(node, "include_self"))


def _scatter_add(edit: Editor, node: Node) -> Scatter:
    return _sourced(node, "sum")


def _overwrite(edit: Editor, node: Node) -> Scatter:
    return _sourced(node, "none")


def _old_reduce(edit: Editor, node: Node) -> Scatter:
    return _sourced(node, _OLD_NAMES[argument(node, "reduce")])


def _sourced(node: Node, mode: str) -> Scatter:
    return Scatter(operand(node), axis(node), operand(node, "index"), operand(node, "src"), mode)


def _overwrite_with_number(edit: Editor, node: Node) -> Scatter:
    return _numbered(edit, node, "none")


def _old_reduce_number(edit: Editor, node: Node) -> Scatter:
    return _numbered(edit, node, _OLD_NAMES[argument(node, "reduce")])


def _numbered(edit: Editor, node: Node, mode: str) -> Scatter:
    index = operand(node, "index")
    source = _full(edit, shape_of(index), argument(node, "value"), dtype_of(node))
    return Scatter(operand(node), axis(node), index, source, mode)


def _index_add(edit: Editor, node: Node) -> Scatter:
    scatter = _indexed(edit, node, "sum")
    alpha = argument(node, "alpha")
    if alpha == 1:
        return scatter
    return replace(scatter, source=edit.call(aten.mul.Tensor, scatter.source, alpha))


def _index_copy(edit: Editor, node: Node) -> Scatter:
    return _indexed(edit, node, "none")


def _index_reduce(edit: Editor, node: Node) -> Scatter:
    scatter = _indexed(edit, node, argument(node, "reduce"))
    return replace(scatter, include_self=argument(node, "include_self"))


def _indexed(edit: Editor, node: Node, mode: str) -> Scatter:
    """Spreads the index (K,) of an index_add and the like over the other axes of its source."""
    source, along = operand(node, "source"), axis(node)
    sizes = shape_of(source)
    return Scatter(
        operand(node), along, _spread(edit, operand(node, "index"), sizes, along), source, mode
    )


def _spread(edit: Editor, index: Node, sizes: tuple[int, ...], along: int) -> Node:
    """Spreads positions (K,) over the other axes of what they are scattered from."""
    if dtype_of(index) != torch.int64:
        index = edit.call(aten._to_copy.default, index, dtype=torch.int64)
    column = [1] * len(sizes)
    column[along] = sizes[along]
    return edit.expand(edit.view(index, column), sizes)


def _index_put(edit: Editor, node: Node) -> Scatter | None:
    """Takes y[arange(B)[:, None], rows] = x and y[:, rows] = x, and the same with accumulate."""
    found = read_batched_index(node)
    if found is None:
        return _index_put_of_every_image(edit, node)
    data, rank = operand(node), len(shape_of(operand(node)))
    sizes = (*found.sizes, *shape_of(data)[len(found.sizes) :])
    rows = edit.view(
        found.rows_from_start(edit), (*found.sizes, *(1 for _ in range(len(found.sizes), rank)))
    )
    source = operand(node, "values")
    if found.single and len(shape_of(source)) > rank - found.layout.rows - 1:
        source = edit.call(aten.unsqueeze.default, source, found.layout.rows - rank)
    source = edit.expand(source, sizes)
    mode = "sum" if argument(node, "accumulate") else "none"
    return Scatter(data, found.layout.rows, edit.expand(rows, sizes), source, mode)


def _index_put_of_every_image(edit: Editor, node: Node) -> Scatter | None:
    """Takes y[:, rows] = x with rows (K,)."""
    data, indices = operand(node), list(argument(node, "indices"))
    given = [a for a, index in enumerate(indices) if index is not None]
    if len(given) != 1 or not is_index_tensor(indices[given[0]]):
        return None
    along, index = given[0], indices[given[0]]
    if len(shape_of(index)) != 1:
        return None
    before = shape_of(data)
    sizes = (*before[:along], *shape_of(index), *before[along + 1 :])
    index = _spread(edit, counted_from_start(edit, index, before[along]), sizes, along)
    mode = "sum" if argument(node, "accumulate") else "none"
    return Scatter(data, along, index, edit.expand(operand(node, "values"), sizes), mode)


_FORMS: Final[dict[Any, Callable[[Editor, Node], Scatter | None]]] = {
    aten.scatter_reduce.two: _scatter_reduce,
    aten.scatter_add.default: _scatter_add,
    aten.scatter.src: _overwrite,
    aten.scatter.value: _overwrite_with_number,
    aten.scatter.reduce: _old_reduce,
    aten.scatter.value_reduce: _old_reduce_number,
    aten.index_add.default: _index_add,
    aten.index_copy.default: _index_copy,
    aten.index_reduce.default: _index_reduce,
    aten.index_put.default: _index_put,
}


def _write(edit: Editor, node: Node, scatter: Scatter, constants: ConstantValues) -> Node | None:
    """Inserts the scatter in its row form, or what integers have for one."""
    if not shape_of(scatter.index):
        return None
    if 0 in shape_of(scatter.index):
        return scatter.data
    flat = _by_image(edit, scatter, constants)
    if flat is not None:
        new = _write(edit, node, flat, constants)
        return None if new is None else edit.view(new, shape_of(node))
    if dtype_of(node).is_floating_point:
        return _write_rows(edit, scatter)
    if scatter.mode == "none":
        return None
    if _stays_exact(scatter):
        return _write_as_floats(edit, scatter)
    if scatter.mode == "mean":
        return _write_integer_mean(edit, scatter)
    return None if is_call(node, aten.scatter_reduce.two) else _reduce(edit, scatter)


def _by_image(edit: Editor, scatter: Scatter, constants: ConstantValues) -> Scatter | None:
    """Reads a scatter into the tokens of all images laid end to end as one into each image."""
    total, *channels = shape_of(scatter.data)
    if scatter.axis != 0 or varying_axes(scatter.index) != {0}:
        return None
    found = read_flat_rows(collapse(edit, scatter.index, (0,)), total, constants)
    if found is None:
        return None
    sizes = shape_of(scatter.index)
    source = edit.cut(narrowed(edit, scatter.source, sizes, 0), 0, 0, sizes[0])
    wide = (*found.sizes, *sizes[1:])
    column = edit.view(found.spread(edit), (*found.sizes, *[1] * len(channels)))
    return replace(
        scatter,
        data=edit.view(scatter.data, (found.sizes[0], found.tokens, *channels)),
        axis=1,
        index=edit.expand(column, wide),
        source=edit.view(source, wide),
    )


def _stays_exact(scatter: Scatter) -> bool:
    """Returns whether float32 holds every intermediate number."""
    if scatter.mode not in ("sum", "amax", "amin"):
        return False
    parts = [bounds_of(part) for part in (scatter.data, scatter.source)]
    if any(part is None for part in parts):
        return False
    own, given = (max(abs(low), abs(high)) for low, high in (p for p in parts if p is not None))
    terms = shape_of(scatter.index)[scatter.axis] if scatter.mode == "sum" else 1
    return own + terms * given <= LARGEST_EXACT


def _write_as_floats(edit: Editor, scatter: Scatter) -> Node:
    data, source = (
        edit.call(aten._to_copy.default, part, dtype=torch.float32)
        for part in (scatter.data, scatter.source)
    )
    result = _write_rows(edit, replace(scatter, data=data, source=source))
    return edit.call(aten._to_copy.default, result, dtype=dtype_of(scatter.data))


def _write_rows(edit: Editor, scatter: Scatter) -> Node:
    """Inserts the row scatter; a smaller index touches a corner of the data only."""
    along, sizes = scatter.axis, shape_of(scatter.index)
    touched = narrowed(edit, scatter.data, sizes, along)
    source = edit.cut(narrowed(edit, scatter.source, sizes, along), along, 0, sizes[along])
    layout = layout_of_index(scatter.index, along)
    result = edit.call(
        torch.ops.tokexport.scatter_tokens.default,
        layout.flatten(edit, touched),
        layout.rows_of(edit, scatter.index),
        layout.flatten(edit, source),
        scatter.mode,
        scatter.include_self,
    )
    return _widened(edit, layout.restore(edit, result, shape_of(touched)), scatter.data)


def _widened(edit: Editor, corner: Node, data: Node) -> Node:
    """Joins a corner that was written with the data around it."""
    for a, size in enumerate(shape_of(data)):
        reached = shape_of(corner)[a]
        if reached < size:
            rest = edit.cut(narrowed(edit, data, shape_of(corner), a), a, reached, size)
            corner = edit.call(aten.cat.default, [corner, rest], a)
    return corner


def _reduce(edit: Editor, scatter: Scatter) -> Node:
    return edit.call(
        aten.scatter_reduce.two,
        scatter.data,
        scatter.axis,
        scatter.index,
        scatter.source,
        scatter.mode,
        include_self=scatter.include_self,
    )


def _write_integer_mean(edit: Editor, scatter: Scatter) -> Node:
    dtype = dtype_of(scatter.data)
    total = _reduce(edit, replace(scatter, mode="sum"))
    own = _full(edit, shape_of(scatter.data), int(scatter.include_self), dtype)
    ones = _full(edit, shape_of(scatter.index), 1, dtype)
    count = _reduce(edit, Scatter(own, scatter.axis, scatter.index, ones, "sum"))
    terms = edit.call(aten.clamp.default, count, 1)
    return edit.call(aten.div.Tensor_mode, total, terms, rounding_mode="floor")


def _full(edit: Editor, shape: tuple[int, ...], number: complex, dtype: torch.dtype) -> Node:
    return edit.call(aten.full.default, [*shape], number, dtype=dtype)
