"""Finds the operators of a rewritten graph that were not recognised, and the reasons.

Generic operators still export and run, but slower, or on fewer runtimes. Checked are softmax
attention, selections by a product, gathers and scatters, products with a one-hot matrix, Fourier
transforms, sorts of integers, searches, and merged rows that nothing joins with the kept ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from tokexport.graph_passes.stack_traces import source_line
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    dtype_of,
    is_call,
    operand,
    operator_name,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.kinds.product_kinds import (
    Kind,
    ProductKinds,
    factors,
    is_product,
    stops,
)
from tokexport.graph_passes.torch_passes.match.broadcast import varying_axes
from tokexport.graph_passes.torch_passes.match.token_indices import is_index_tensor
from tokexport.graph_passes.torch_passes.recognise.recognise_attention import read_attention

_SORTS: Final = (
    aten.sort.default,
    aten.sort.stable,
    aten.argsort.default,
    aten.argsort.stable,
    aten.topk.default,
)


@dataclass(frozen=True)
class LeftGeneric:
    """A node that stayed as it was.

    Attributes:
        node: The node.
        what: What it is, a noun: ``attention``, ``selection``, ``merge``, ``gather``, ``scatter``,
            ``one-hot``, ``transform``, ``sort`` or ``search``.
        why: Why it is no operator of the domain, a clause.
    """

    node: Node
    what: str
    why: str

    @property
    def operator(self) -> str:
        """The operator: ``aten.matmul``."""
        return operator_name(self.node)

    @property
    def line(self) -> str:
        """The line of the user's code it came from, or ''."""
        return source_line(self.node)


def left_generic(program: ExportedProgram) -> tuple[LeftGeneric, ...]:
    """Returns what stayed generic in a rewritten program, in the order of the graph."""
    kinds = ProductKinds(program)
    found = []
    for node in program.graph.nodes:
        if node.op != "call_function" or not kinds.varies(node):
            continue
        what, why = _reason(node, kinds)
        if why:
            found.append(LeftGeneric(node, what, why))
    return tuple(found)


def _reason(node: Node, kinds: ProductKinds) -> tuple[str, str]:
    if is_product(node) or is_call(node, aten.scaled_dot_product_attention.default):
        kind = Kind.ATTENTION if not is_product(node) else kinds.kind(node)
        if kind is Kind.MATCHING:
            return "selection", _no_match(node)
        if is_product(node) and any(kinds.only_chosen(factor) for factor in factors(node)):
            return "one-hot", "it moves rows by a product with numbers that say where, not by index"
        if kind is Kind.ATTENTION and not _is_only_logits(node, kinds):
            return "attention", _no_attention(node)
    if is_call(node, *_SORTS):
        return "sort", _no_top_k(node)
    if is_call(node, torch.ops.tokexport.scatter_tokens.default):
        return "merge", _no_merge(node)
    if operator_name(node).startswith("aten.fft_"):
        return "transform", "it is a Fourier transform whose matrix would be too large"
    if is_call(node, aten.embedding.default) and not kinds.varies(operand(node, "weight")):
        return "gather", ""
    what, check = _CHECKS.get(node.target, ("", _no_reason))
    return what, check(node)


def _is_only_logits(node: Node, kinds: ProductKinds) -> bool:
    """Returns whether a product is the q · kᵀ of an attention that is reported at its other end."""
    return is_product(node) and not kinds.reads_softmax(node)


def _no_attention(node: Node) -> str:
    why = read_attention(node)
    if isinstance(why, str):
        return why
    if not is_call(node, aten.matmul.default):
        return f"its probabilities are applied by {operator_name(node)}, not by a product of rows"
    between = operand(node)
    return f"{operator_name(between)} stands between its softmax and its values"


def _no_match(node: Node) -> str:
    """Names where the scores go, unless it is a bipartite match."""
    readers = stops(node)
    if any(is_call(reader, torch.ops.tokexport.bipartite_match.default) for reader in readers):
        return ""
    names = ", ".join(sorted({operator_name(reader) for reader in readers}))
    return f"its scores go to {names}, where no r best rows and their partners are found"


def _no_top_k(node: Node) -> str:
    source = operand(node)
    if dtype_of(source).is_floating_point:
        return ""
    return f"it orders {dtype_of(source)} that are not known to be positions of tokens"


def _no_merge(node: Node) -> str:
    mode = argument(node, "mode")
    if mode == "none":
        return ""
    if not argument(node, "include_self"):
        return f"its {mode} leaves out the row that was there"
    if len(node.users) != 1:
        return f"its rows are read {len(node.users)} times, not joined with kept rows once"
    (user,) = node.users
    if not is_call(user, aten.cat.default):
        return f"its rows go to {operator_name(user)}, not to a join with kept rows"
    return "its rows are not joined right behind the kept rows of the same source"


def _no_row_gather(node: Node) -> str:
    index, along = operand(node, "index"), axis(node)
    if len(shape_of(index)) < 3 and dtype_of(node) == torch.int64:
        return ""  # positions of positions: no tokens move
    if len(shape_of(index)) < 3:
        return f"its index {shape_of(index)} takes single numbers: there are no channels"
    others = sorted(varying_axes(index) - {0, along})
    return f"its index {shape_of(index)} along axis {along} differs by axes {others} too"


def _no_row_take(node: Node) -> str:
    return "it has no dim: it takes from all elements as one row"


def _no_row_index(node: Node) -> str:
    indices = list(argument(node, "indices"))
    given = [a for a, index in enumerate(indices) if index is not None]
    if not all(is_index_tensor(indices[a]) for a in given):
        kinds = sorted({str(dtype_of(indices[a])) for a in given})
        return f"its index is {', '.join(kinds)}: a mask, or positions of another type"
    if given == [0]:
        return _OF_ALL
    return f"its indices along axes {given} are not the count of the images and then the rows"


def _no_row_select(node: Node) -> str:
    """Whole rows of every image are index_select's already."""
    return _OF_ALL if axis(node) == 0 else ""


def _no_table(node: Node) -> str:
    return f"it looks rows up in values of the input: {_OF_ALL}"


def _no_row_scatter(node: Node) -> str:
    if not dtype_of(node).is_floating_point:
        return f"it writes {dtype_of(node)}, and rows are of floating-point numbers"
    if is_call(node, aten.index_put.default):
        return _no_row_index(node)
    return "its index is a single number, not a row of positions"


def _no_mask(node: Node) -> str:
    return "it writes where a mask says, one number after the other"


def _no_element(node: Node) -> str:
    return "its index counts single numbers of the whole tensor, not rows"


def _no_search(node: Node) -> str:
    return "it finds positions by steps that it compares with, not by the best scores"


def _no_reason(node: Node) -> str:
    return ""


#: The images themselves, or rows whose batch was flattened away.
_OF_ALL: Final = "it counts along axis 0, over all images at once, not the rows of each image"

_CHECKS: Final[dict[Any, tuple[str, Callable[[Node], str]]]] = {
    aten.gather.default: ("gather", _no_row_gather),
    aten.take_along_dim.default: ("gather", _no_row_take),
    aten.index.Tensor: ("gather", _no_row_index),
    aten.index_select.default: ("gather", _no_row_select),
    aten.embedding.default: ("gather", _no_table),
    aten.take.default: ("gather", _no_element),
    aten.put.default: ("scatter", _no_element),
    aten.masked_scatter.default: ("scatter", _no_mask),
    aten.index_put.default: ("scatter", _no_row_scatter),
    aten.scatter.src: ("scatter", _no_row_scatter),
    aten.scatter.value: ("scatter", _no_row_scatter),
    aten.scatter_add.default: ("scatter", _no_row_scatter),
    aten.scatter_reduce.two: ("scatter", _no_row_scatter),
    aten.scatter.reduce: ("scatter", _no_row_scatter),
    aten.scatter.value_reduce: ("scatter", _no_row_scatter),
    aten.index_add.default: ("scatter", _no_row_scatter),
    aten.index_copy.default: ("scatter", _no_row_scatter),
    aten.index_reduce.default: ("scatter", _no_row_scatter),
    aten.searchsorted.Tensor: ("search", _no_search),
    aten.bucketize.Tensor: ("search", _no_search),
}
