"""Brings every gather of whole rows to ``gather_tokens``.

Before → after::

    gather(x, 1, rows[:, :, None].expand(B, K, C))      →  gather_tokens(x, rows)
    gather(size, 1, rows)                                →  gather_tokens(size[:, :, None], rows)
    take_along_dim(x, rows[:, :, None], 1)               →  gather_tokens(x, rows)
    x[arange(B)[:, None], rows]                          →  gather_tokens(x, rows)
    x.flatten(0, 1)[(rows + N * arange(B)[:, None]).flatten()]  →  gather_tokens(x, rows)
    x[:, rows]                                           →  index_select(x, 1, rows)

``index_select`` takes whole rows already, the same of every image. Numbers (B, N), of which a token
has one, are rows of one channel. An index that differs by channel stays an element gather. One that
is smaller than its data along another axis, which torch takes and other runtimes do not, is made
explicit by a slice (torch.gather: "index.size(d) <= input.size(d)"); there one channel is a row,
since OpenVINO loses a slice before its GatherElements.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
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
from tokexport.graph_passes.torch_passes.match.broadcast import varying_axes
from tokexport.graph_passes.torch_passes.match.constant_values import ConstantValues
from tokexport.graph_passes.torch_passes.match.token_indices import (
    RowLayout,
    counted_from_start,
    is_index_tensor,
    layout_of_index,
    narrowed,
    read_batched_index,
    read_flat_index,
)


class GatherRows(TorchPass):
    """Finds gathers whose index says which rows, not which elements."""

    name: ClassVar[str] = "gather rows"
    comes_before: ClassVar[tuple[str, ...]] = ("recognise merges",)

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many gathers it changed."""
        changed = 0
        constants = ConstantValues()
        for node in list(edit.graph.nodes):
            with edit.before(node):
                if is_call(node, aten.gather.default):
                    new = _gather(edit, node)
                elif is_call(node, aten.take_along_dim.default):
                    new = _take_along_dim(edit, node)
                elif is_call(node, aten.index.Tensor):
                    new = (
                        _batched_index(edit, node)
                        or _flat_index(edit, node, constants)
                        or _rows_of_every_image(edit, node)
                    )
                elif is_call(node, aten.index_select.default):
                    new = _flat_index(edit, node, constants)
                else:
                    new = None
            if new is not None:
                edit.replace(node, new)
                changed += 1
            elif is_call(node, *_REASONS) and (why := why_no_rows(node)):
                edit.leave(node, why)
        return changed


def why_no_rows(node: Node) -> str:
    """Says why a gather takes no rows of each image, a clause; '' where it takes no tokens."""
    return _REASONS[node.target](node)


def why_no_index_of_rows(node: Node) -> str:
    """Says why the indices of x[…], read or written, are not those of rows of each image."""
    indices = list(argument(node, "indices"))
    given = [a for a, index in enumerate(indices) if index is not None]
    if not all(is_index_tensor(indices[a]) for a in given):
        kinds = sorted({str(dtype_of(indices[a])) for a in given})
        return f"its index is {', '.join(kinds)}: a mask, or positions of another type"
    if given == [0]:
        return OF_ALL
    return f"its indices along axes {given} are not the count of the images and then the rows"


def _why_no_gather(node: Node) -> str:
    index, along = operand(node, "index"), axis(node)
    if len(shape_of(index)) < 3 and dtype_of(node) == torch.int64:
        return ""  # positions of positions: no tokens move
    if len(shape_of(index)) < 3:
        return f"its index {shape_of(index)} takes single numbers: there are no channels"
    others = sorted(varying_axes(index) - {0, along})
    return f"its index {shape_of(index)} along axis {along} differs by axes {others} too"


def _why_no_take(node: Node) -> str:
    return "it has no dim: it takes from all elements as one row"


def _why_no_selection(node: Node) -> str:
    """Whole rows of every image are index_select's already."""
    return OF_ALL if axis(node) == 0 else ""


#: The images themselves, or rows whose batch was flattened away.
OF_ALL: Final = "it counts along axis 0, over all images at once, not the rows of each image"

_REASONS: Final[dict[Any, Callable[[Node], str]]] = {
    aten.gather.default: _why_no_gather,
    aten.take_along_dim.default: _why_no_take,
    aten.index.Tensor: why_no_index_of_rows,
    aten.index_select.default: _why_no_selection,
}


def _gather(edit: Editor, node: Node) -> Node | None:
    data, along, index = operand(node), axis(node), operand(node, "index")
    cut = narrowed(edit, data, shape_of(index), along)
    layout = layout_of_index(index, along)
    if cut is data and not layout.channels and not _takes_tokens(node):
        return None
    return _gather_tokens(edit, layout, cut, layout.rows_of(edit, index), shape_of(index))


def _takes_tokens(node: Node) -> bool:
    """Returns whether a gather takes what each token has one number of, (B, N)."""
    return len(shape_of(node)) == 2 and axis(node) == 1 and dtype_of(node).is_floating_point


def _take_along_dim(edit: Editor, node: Node) -> Node | None:
    """Spreads data and index over each other, as the call does, and leaves a gather."""
    if argument(node, "dim") is None:
        return None
    data, index, along = operand(node), operand(node, "indices"), axis(node)
    tokens, sizes = shape_of(data)[along], shape_of(node)
    data = edit.expand(data, (*sizes[:along], tokens, *sizes[along + 1 :]))
    index = edit.expand(counted_from_start(edit, index, tokens), sizes)
    gather = edit.call(aten.gather.default, data, along, index)
    return _gather(edit, gather) or gather


def _batched_index(edit: Editor, node: Node) -> Node | None:
    """Takes x[arange(B)[:, None], rows]."""
    found = read_batched_index(node)
    if found is None:
        return None
    data, rows = operand(node), found.rows_from_start(edit)
    shape = (*found.sizes, *shape_of(data)[len(found.sizes) :])
    return edit.view(_gather_tokens(edit, found.layout, data, rows, shape), shape_of(node))


def _flat_index(edit: Editor, node: Node, constants: ConstantValues) -> Node | None:
    """Takes rows of all images in one axis."""
    found = read_flat_index(node, constants)
    if found is None:
        return None
    data, flat = found
    layout = RowLayout((0,), 1, tuple(range(2, len(shape_of(data)))))
    shape = (*flat.sizes, *shape_of(data)[2:])
    taken = _gather_tokens(edit, layout, data, flat.spread(edit), shape)
    return edit.view(taken, shape_of(node))


def _rows_of_every_image(edit: Editor, node: Node) -> Node | None:
    """Takes x[:, rows], with rows of any rank and at any axis but the first."""
    data, indices = operand(node), list(argument(node, "indices"))
    given = [a for a, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given[0] == 0 or not is_index_tensor(indices[given[0]]):
        return None
    along = given[0]
    index = counted_from_start(edit, indices[along], shape_of(data)[along])
    rows = edit.call(
        aten.index_select.default, data, along, edit.view(index, (prod(shape_of(index)),))
    )
    return edit.view(rows, shape_of(node))


def _gather_tokens(
    edit: Editor, layout: RowLayout, data: Node, rows: Node, shape: tuple[int, ...]
) -> Node:
    gather = torch.ops.tokexport.gather_tokens.default
    taken = edit.call(gather, layout.flatten(edit, data), rows)
    return layout.restore(edit, taken, shape)
