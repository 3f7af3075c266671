"""Classifies a product of matrices by its operands and its readers.

===============  ==================================================================================
``linear``        one factor is made of weights alone
``attention``     q · kᵀ, whose result becomes a softmax that weighs something; or that weighing
``matching``      its result decides which rows are moved, and nothing else reads it; or only its
                  best is read, which may weigh the moved rows
``other``         the rest: linear attention, the values of a merge by matrix, …
===============  ==================================================================================

Names of modules play no part. An index that is read *as an index* passes no value on: what reaches
the outputs only through indices does not appear in them, it only selects.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    is_tensor,
    operand,
    operands,
    operator_name,
)
from tokexport.graph_passes.torch_passes.graph.editor import aten


class Kind(StrEnum):
    """The purposes of multiply-accumulates."""

    LINEAR = "linear"
    CONVOLUTION = "convolution"
    ATTENTION = "attention"
    MATCHING = "matching"
    NORMALISATION = "normalisation"
    OTHER = "other"


#: The names under which products take their two factors.
FACTORS: Final[dict[Any, tuple[str, str]]] = {
    aten.matmul.default: ("self", "other"),
    aten.mm.default: ("self", "mat2"),
    aten.bmm.default: ("self", "mat2"),
    aten.addmm.default: ("mat1", "mat2"),
    aten.baddbmm.default: ("batch1", "batch2"),
    aten.addbmm.default: ("batch1", "batch2"),
    aten.mv.default: ("self", "vec"),
    aten.addmv.default: ("mat", "vec"),
    aten.dot.default: ("self", "tensor"),
    aten.vdot.default: ("self", "other"),
    aten.inner.default: ("self", "other"),
    aten.tensordot.default: ("self", "other"),
}
_SOFTMAXES: Final = (
    aten.softmax.int,
    aten._softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
    aten.exp.default,  # of a softmax written by hand
)
#: Operators, beside pointwise ones, that keep the values of logits and probabilities in place.
_LAYOUT: Final = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.slice.Tensor,
    aten.select.int,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unbind.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.cat.default,
    aten.contiguous.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.dropout.default,
    aten.constant_pad_nd.default,
    aten.pad.default,
    aten.slice_scatter.default,
    aten.select_scatter.default,
)
#: Operators that give the best of a row of scores.
_COMPARISONS: Final = (
    aten.max.dim,
    aten.min.dim,
    aten.amax.default,
    aten.amin.default,
    aten.argmax.default,
    aten.argmin.default,
    aten.topk.default,
    aten.sort.default,
    aten.sort.stable,
    aten.argsort.default,
    aten.argsort.stable,
)
#: Heads may be mixed by weights on either side of the softmax ("talking heads").
_MIXES: Final = (aten.linear.default, aten.conv2d.default)
#: The arguments that say which rows or elements, of the operators that move them.
_SELECTORS: Final = {
    "aten.gather": ("index",),
    "aten.take_along_dim": ("indices",),
    "aten.index_select": ("index",),
    "aten.index": ("indices",),
    "aten.index_put": ("indices",),
    "aten.index_add": ("index",),
    "aten.index_copy": ("index",),
    "aten.index_reduce": ("index",),
    "aten.scatter": ("index",),
    "aten.scatter_add": ("index",),
    "aten.scatter_reduce": ("index",),
    "aten.embedding": ("indices",),
    "aten.one_hot": ("self",),
    "aten.where": ("condition",),
    "aten.masked_fill": ("mask",),
    "aten.masked_scatter": ("mask",),
    "tokexport.gather_tokens": ("index",),
    "tokexport.scatter_tokens": ("index",),
    "tokexport.merge_tokens": ("kept", "src", "dst"),
}

#: The arguments of which only the shape is read.
_SHAPES: Final = {
    "aten.fill": ("self",),
    "aten.copy": ("self",),
    "aten.full_like": ("self",),
    "aten.zeros_like": ("self",),
    "aten.ones_like": ("self",),
    "aten.empty_like": ("self",),
    "aten.new_full": ("self",),
    "aten.new_zeros": ("self",),
    "aten.new_ones": ("self",),
    "aten.new_empty": ("self",),
    "aten.expand_as": ("other",),
}


class ProductKinds:
    """Reads the products of one graph.

    Args:
        program: A functional program, captured or rewritten.
    """

    def __init__(self, program: ExportedProgram) -> None:
        inputs = {
            spec.arg.name
            for spec in program.graph_signature.input_specs
            if spec.kind is InputKind.USER_INPUT and hasattr(spec.arg, "name")
        }
        self._varying: set[Node] = set()
        for node in program.graph.nodes:
            given = node.op == "placeholder" and node.name in inputs
            if given or any(part in self._varying for part in node.all_input_nodes):
                self._varying.add(node)
        self._answering = _answering(program)

    def varies(self, node: Node) -> bool:
        """Returns whether a value depends on an input of the model, not on weights alone."""
        return node in self._varying

    def only_selects(self, node: Node) -> bool:
        """Returns whether a value reaches the outputs only as the choice of rows."""
        return node not in self._answering

    def only_matches(self, node: Node) -> bool:
        """Returns whether a product only selects, or only its best scores are read."""
        ends = stops(node)
        compared = bool(ends) and all(is_call(end, *_COMPARISONS) for end in ends)
        return compared or self.only_selects(node)

    def only_chosen(self, node: Node) -> bool:
        """Returns whether the inputs reach a value only by what was chosen: a one-hot matrix, …."""
        waiting, seen, chosen = [node], {node}, False
        while waiting:
            part = waiting.pop()
            if not self.varies(part):
                continue
            if is_tensor(part) and not (
                dtype_of(part).is_floating_point or dtype_of(part).is_complex
            ):
                chosen = True
                continue
            if part.op != "call_function":
                return False
            values = _value_inputs(part)
            chosen = chosen or any(self.varies(p) for p in part.all_input_nodes if p not in values)
            waiting += [value for value in values if value not in seen]
            seen.update(values)
        return chosen

    def becomes_softmax(self, node: Node) -> bool:
        """Returns whether a product's result becomes a softmax that a second product reads."""
        return any(
            any(is_product(end) for end in _reached(softmax, _readers, _weighs))
            for softmax in _reached(node, _readers, _is_logits)
            if is_call(softmax, *_SOFTMAXES)
        )

    def reads_softmax(self, node: Node) -> bool:
        """Returns whether one factor of a product is a softmax, or was merged from one."""
        found = _reached(node, _value_inputs, _weighs)
        return any(is_call(softmax, *_SOFTMAXES) for softmax in found)

    def kind(self, node: Node) -> Kind:
        """Returns the kind of a product, a linear layer or a fused attention."""
        if self.only_selects(node):
            return Kind.MATCHING
        if not is_product(node):
            return Kind.LINEAR
        if self.becomes_softmax(node) or self.reads_softmax(node):
            return Kind.ATTENTION
        if not all(self.varies(factor) for factor in factors(node)):
            return Kind.LINEAR
        return Kind.MATCHING if self.only_matches(node) else Kind.OTHER


def factors(node: Node) -> list[Node]:
    """Returns what a product multiplies; an einsum may have any number of factors."""
    if is_call(node, aten.einsum.default):
        return operands(node, "tensors")
    return [operand(node, name) for name in FACTORS[node.target]]


def _answering(program: ExportedProgram) -> set[Node]:
    """Returns the nodes from which a value reaches an output of the model."""
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    found: set[Node] = set()
    waiting = [output]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += _value_inputs(node)
    return found


def _value_inputs(node: Node) -> list[Node]:
    """Returns the nodes that a node takes values from, without its indices."""
    called = operator_name(node) if node.op == "call_function" else ""
    names = _SELECTORS.get(called) or _SHAPES.get(called)
    if not names:
        return list(node.all_input_nodes)
    taken: list[Node] = []
    for formal in node.target._schema.arguments:  # type: ignore[union-attr]
        if formal.name not in names:
            given = argument(node, formal.name)
            parts = given if isinstance(given, list | tuple) else [given]
            taken.extend(part for part in parts if isinstance(part, Node))
    return taken


def _readers(node: Node) -> list[Node]:
    """Returns the nodes that take values from a node."""
    return [user for user in node.users if node in _value_inputs(user)]


def is_product(node: Node) -> bool:
    """Returns whether a call multiplies matrices."""
    return is_call(node, aten.einsum.default, *FACTORS)


def stops(start: Node) -> set[Node]:
    """Returns the readers of a value, also through pointwise and layout operators."""
    found = _reached(start, _readers, _keeps_place)
    return {node for node in found if not _keeps_place(node)}


def _reached(
    start: Node, step: Callable[[Node], list[Node]], passes: Callable[[Node], bool]
) -> set[Node]:
    """Returns the nodes reached over calls that pass, and the first that do not."""
    found: set[Node] = set()
    waiting = step(start)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            if passes(node):
                waiting += step(node)
    return found


def _keeps_place(node: Node) -> bool:
    """Returns whether a call leaves each value at its place, changed or not."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, OpOverload):
        return True  # one of several results
    pointwise = torch.Tag.pointwise in node.target.tags
    return pointwise or is_call(node, *_SOFTMAXES, *_LAYOUT)


def _is_logits(node: Node) -> bool:
    return _keeps_place(node) or is_call(node, *_MIXES)


def _weighs(node: Node) -> bool:
    """Returns whether a call keeps probabilities: merges them like tokens, as in MCTF."""
    moved = node.op == "call_function" and operator_name(node) in _SELECTORS
    return _is_logits(node) or moved
