"""Finds the operators of a rewritten graph that were not recognised, and the reasons.

Generic operators still export and run, but slower, or on fewer runtimes. The reason is that of the
pass for the operator, where there is one. Checked are softmax attention, selections by a product,
gathers and scatters, products with a one-hot matrix, Fourier transforms, sorts of integers,
searches, and merged rows that nothing joins with the kept ones.
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
    dtype_of,
    is_call,
    operand,
    operator_name,
)
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.kinds.product_kinds import (
    Kind,
    ProductKinds,
    factors,
    is_product,
    stops,
)
from tokexport.graph_passes.torch_passes.recognise import gather_rows, scatter_rows
from tokexport.graph_passes.torch_passes.recognise.gather_rows import OF_ALL
from tokexport.graph_passes.torch_passes.recognise.recognise_attention import read_attention
from tokexport.graph_passes.torch_passes.recognise.recognise_merges import why_no_merge

_SORTS: Final = (
    aten.sort.default,
    aten.sort.stable,
    aten.argsort.default,
    aten.argsort.stable,
    aten.topk.default,
)


@dataclass(frozen=True)
class Unrecognised:
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


def unrecognised(program: ExportedProgram) -> tuple[Unrecognised, ...]:
    """Returns what stayed generic in a rewritten program, in the order of the graph."""
    kinds = ProductKinds(program)
    found = []
    for node in program.graph.nodes:
        if node.op != "call_function" or not kinds.varies(node):
            continue
        what, why = _reason(node, kinds)
        if why:
            found.append(Unrecognised(node, what, why))
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
        return "merge", why_no_merge(node)
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


def _no_table(node: Node) -> str:
    return f"it looks rows up in values of the input: {OF_ALL}"


def _no_mask(node: Node) -> str:
    return "it writes where a mask says, one number after the other"


def _no_element(node: Node) -> str:
    return "its index counts single numbers of the whole tensor, not rows"


def _no_search(node: Node) -> str:
    return "it finds positions by steps that it compares with, not by the best scores"


def _no_reason(node: Node) -> str:
    return ""


_CHECKS: Final[dict[Any, tuple[str, Callable[[Node], str]]]] = {
    aten.gather.default: ("gather", gather_rows.why_no_rows),
    aten.take_along_dim.default: ("gather", gather_rows.why_no_rows),
    aten.index.Tensor: ("gather", gather_rows.why_no_rows),
    aten.index_select.default: ("gather", gather_rows.why_no_rows),
    aten.embedding.default: ("gather", _no_table),
    aten.take.default: ("gather", _no_element),
    aten.put.default: ("scatter", _no_element),
    aten.masked_scatter.default: ("scatter", _no_mask),
    aten.index_put.default: ("scatter", scatter_rows.why_no_rows),
    aten.scatter.src: ("scatter", scatter_rows.why_no_rows),
    aten.scatter.value: ("scatter", scatter_rows.why_no_rows),
    aten.scatter_add.default: ("scatter", scatter_rows.why_no_rows),
    aten.scatter_reduce.two: ("scatter", scatter_rows.why_no_rows),
    aten.scatter.reduce: ("scatter", scatter_rows.why_no_rows),
    aten.scatter.value_reduce: ("scatter", scatter_rows.why_no_rows),
    aten.index_add.default: ("scatter", scatter_rows.why_no_rows),
    aten.index_copy.default: ("scatter", scatter_rows.why_no_rows),
    aten.index_reduce.default: ("scatter", scatter_rows.why_no_rows),
    aten.searchsorted.Tensor: ("search", _no_search),
    aten.bucketize.Tensor: ("search", _no_search),
}
