"""Counts the multiply-accumulates (MACs) of a graph, node by node.

A product of (m, k) and (k, n) costs m · n · k, a convolution its outputs times the inputs that each
of them reads, an attention both of its products. Biases, activations and softmax cost nothing, and
moving rows costs nothing: the convention of the papers. Columns of a linear layer that nothing
reads cost nothing either: no target computes them. Normalisations are counted apart, as fvcore
counts them (``fvcore.nn.jit_handles.norm_flop_counter``): 5 operations for each element with a
scale and a shift, 4 without; a batch normalisation with fixed statistics 2 or 1.

The numbers come from the shapes in the graph alone. An operator that is built of others and has no
rule here is counted as torch's own counter counts its parts (``torch.utils.flop_counter``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode

from tokexport.graph_passes.stack_traces import source_line
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    is_tensor,
    operand,
    operands,
    operator_name,
    shape_of,
    value,
)
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.kinds.product_kinds import (
    FACTORS,
    Kind,
    ProductKinds,
    factors,
)
from tokexport.graph_passes.torch_passes.trim.drop_unread_columns import columns_read


@dataclass(frozen=True)
class NodeMacs:
    """The cost of one node.

    Attributes:
        node: The node.
        kind: What it is for.
        sizes: The loops over which it multiplies and adds; their product is the cost.
        token_axes: Which of ``sizes`` run over tokens, where their role says so.
        rows_axis: Which of ``sizes`` runs over the tokens of all images together, if one does.
    """

    node: Node
    kind: Kind
    sizes: tuple[int, ...]
    token_axes: tuple[int, ...] = ()
    rows_axis: int | None = None

    @property
    def macs(self) -> int:
        """The multiply-accumulates of a run."""
        return prod(self.sizes)

    @property
    def operator(self) -> str:
        """The operator: ``aten.linear``."""
        return operator_name(self.node)

    @property
    def module(self) -> str:
        """The path of the module it ran in: ``blocks.0.attn``."""
        return module_path(self.node)

    @property
    def line(self) -> str:
        """The line of the user's code it came from, or ''."""
        return source_line(self.node)


def count_macs(program: ExportedProgram) -> tuple[NodeMacs, ...]:
    """Returns every node of a captured or rewritten program that costs something, in order."""
    kinds = ProductKinds(program)
    found = []
    for node in program.graph.nodes:
        counted = _count(node, kinds) if node.op == "call_function" else None
        if counted is not None and counted.macs:
            found.append(counted)
    return tuple(found)


def module_path(node: Node) -> str:
    """Returns the path of the innermost module a node came from, '' for the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths else ""


def _count(node: Node, kinds: ProductKinds) -> NodeMacs | None:
    if operator_name(node) == "tokexport.sized_attention":
        return _attention(node, ("q", "k", "v"), kinds)
    rule = _RULES.get(node.target)
    if rule is not None:
        return rule(node, kinds)
    if node.target in FACTORS or node.target is aten.einsum.default:
        sizes = _product_sizes(node)
        if sizes is not None:
            return _product(node, sizes, kinds)
    return _composite(node, kinds)


def _linear(node: Node, kinds: ProductKinds) -> NodeMacs:
    inputs = shape_of(operand(node, "weight"))[-1]
    rows = prod(shape_of(operand(node, "input"))[:-1])
    return NodeMacs(node, kinds.kind(node), (rows, _outputs(node), inputs), rows_axis=0)


def _outputs(linear: Node) -> int:
    return columns_read(linear) if len(shape_of(operand(linear, "weight"))) > 1 else 1


def _bilinear(node: Node, kinds: ProductKinds) -> NodeMacs:
    rows = prod(shape_of(operand(node, "input1"))[:-1])
    weight = shape_of(operand(node, "weight"))
    return NodeMacs(node, kinds.kind(node), (rows, *weight), rows_axis=0)


def _convolution(node: Node, kinds: ProductKinds) -> NodeMacs:
    """Each output reads in/groups · kernel inputs; transposed, each input feeds as many outputs."""
    first, second, *kernel = shape_of(operand(node, "weight"))
    data = operand(node, "input") if _is_transposed(node) else node
    positions = prod(shape_of(data)) // first
    sizes = (positions, first, second * prod(kernel))
    return NodeMacs(node, Kind.CONVOLUTION, sizes, rows_axis=0)


def _is_transposed(node: Node) -> bool:
    if node.target is aten.convolution.default:
        return bool(argument(node, "transposed"))
    return "transpose" in operator_name(node)


def _fused_attention(node: Node, kinds: ProductKinds) -> NodeMacs:
    return _attention(node, ("query", "key", "value"), kinds)


def _attention(node: Node, names: tuple[str, str, str], kinds: ProductKinds) -> NodeMacs:
    """Both products: q · kᵀ over the channels of k, and probabilities · v over those of v."""
    q, k, v = (shape_of(operand(node, name)) for name in names)
    sizes = (prod(q[:-2]), q[-2], k[-2], q[-1] + v[-1])
    kind = Kind.MATCHING if kinds.only_selects(node) else Kind.ATTENTION
    return NodeMacs(node, kind, sizes, token_axes=(1, 2))


def _distances(node: Node, kinds: ProductKinds) -> NodeMacs:
    *batch, rows, channels = shape_of(operand(node, "x1"))
    columns = shape_of(node)[-1]
    kind = Kind.MATCHING if kinds.only_matches(node) else Kind.OTHER
    batch_size = prod(shape_of(node)[:-2])
    return NodeMacs(node, kind, (batch_size, rows, columns, channels), token_axes=(1, 2))


def _product(node: Node, sizes: tuple[int, int, int, int], kinds: ProductKinds) -> NodeMacs:
    """Takes sizes (batch, m, n, k) and finds which of them run over tokens."""
    kind = kinds.kind(node)
    batch, m, n, k = sizes
    if kind is Kind.LINEAR:
        first, second = factors(node)
        if not kinds.varies(second):
            return NodeMacs(node, kind, (batch * m, n, k), rows_axis=0)
        if not kinds.varies(first) and node.target is aten.einsum.default:
            return NodeMacs(node, kind, (batch * n, m, k), rows_axis=0)
        return NodeMacs(node, kind, sizes)
    if kind is Kind.ATTENTION:
        return NodeMacs(node, kind, sizes, (1, 2) if kinds.becomes_softmax(node) else (1, 3))
    return NodeMacs(node, kind, sizes)


def _product_sizes(node: Node) -> tuple[int, int, int, int] | None:
    """Returns (batch, m, n, k) of a product of two factors."""
    if node.target is aten.einsum.default:
        return _einsum_sizes(node)
    if node.target in (aten.inner.default, aten.tensordot.default):
        return None
    first, second = (shape_of(part) for part in factors(node))
    m = first[-2] if len(first) > 1 else 1
    n = second[-1] if len(second) > 1 else 1
    batch = torch.broadcast_shapes(first[:-2], second[:-2])
    return prod(batch), m, n, first[-1]


def _einsum_sizes(node: Node) -> tuple[int, int, int, int] | None:
    """Reads the equation of two factors without repeated letters or ellipsis."""
    equation = argument(node, "equation").replace(" ", "")
    if len(operands(node, "tensors")) != 2 or "->" not in equation or "." in equation:
        return None
    terms, result = equation.split("->")
    one, other = terms.split(",")
    if len(set(one)) != len(one) or len(set(other)) != len(other):
        return None
    sizes: dict[str, int] = {}
    for letters, factor in zip((one, other), operands(node, "tensors"), strict=True):
        for letter, size in zip(letters, shape_of(factor), strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))

    def over(letters: set[str]) -> int:
        return prod(sizes[letter] for letter in letters)

    shared, kept = set(one) & set(other), set(result)
    return (
        over(shared & kept),
        over((set(one) - shared) & kept),
        over((set(other) - shared) & kept),
        over(shared - kept),
    )


def _layer_norm(node: Node, kinds: ProductKinds) -> NodeMacs:
    shape = argument(node, "normalized_shape")
    return _normalisation(node, prod(shape), 5 if _is_affine(node) else 4)


def _rms_norm(node: Node, kinds: ProductKinds) -> NodeMacs:
    """Counts LayerNorm's operations less those of the mean and the shift; fvcore knows no RMS."""
    return _normalisation(
        node, prod(argument(node, "normalized_shape")), 3 if _is_affine(node) else 2
    )


def _group_norm(node: Node, kinds: ProductKinds) -> NodeMacs:
    return _normalisation(node, shape_of(operand(node, "input"))[1], 5 if _is_affine(node) else 4)


def _native_group_norm(node: Node, kinds: ProductKinds) -> NodeMacs:
    return _normalisation(node, argument(node, "C"), 5 if _is_affine(node) else 4)


def _batch_norm(node: Node, kinds: ProductKinds) -> NodeMacs:
    return _normalisation(node, shape_of(operand(node, "input"))[1], 2 if _is_affine(node) else 1)


def _normalisation(node: Node, width: int, operations: int) -> NodeMacs:
    rows = prod(shape_of(operand(node, "input"))) // width
    return NodeMacs(node, Kind.NORMALISATION, (rows, width, operations), rows_axis=0)


def _is_affine(node: Node) -> bool:
    return argument(node, "weight") is not None


def _composite(node: Node, kinds: ProductKinds) -> NodeMacs | None:
    """Counts an operator built of others by running it on shapes alone."""
    target = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return None
    if target._schema.is_mutable or not target._can_decompose():
        return None
    tensors = [part for part in node.all_input_nodes if is_tensor(part)]
    modes = [value(part).fake_mode for part in tensors if hasattr(value(part), "fake_mode")]
    if not modes or torch.Tag.pointwise in target.tags:
        return None
    args, kwargs = map_arg((node.args, node.kwargs), value)
    with modes[0], torch.no_grad(), FlopCounterMode(display=False) as counter:
        target(*args, **kwargs)
    weights = any(not kinds.varies(part) for part in tensors)
    kind = Kind.LINEAR if weights else Kind.OTHER
    if kinds.only_selects(node):
        kind = Kind.MATCHING
    return NodeMacs(node, kind, (counter.get_total_flops() // 2,))


_RULES: Final[dict[Any, Callable[[Node, ProductKinds], NodeMacs]]] = {
    aten.linear.default: _linear,
    aten.bilinear.default: _bilinear,
    aten.conv1d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv3d.padding: _convolution,
    aten.convolution.default: _convolution,
    aten.conv_transpose1d.default: _convolution,
    aten.conv_transpose2d.input: _convolution,
    aten.conv_transpose3d.input: _convolution,
    aten.scaled_dot_product_attention.default: _fused_attention,
    aten.cdist.default: _distances,
    aten._cdist_forward.default: _distances,
    aten.layer_norm.default: _layer_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.native_group_norm.default: _native_group_norm,
    aten.instance_norm.default: _group_norm,
    aten.batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
}
