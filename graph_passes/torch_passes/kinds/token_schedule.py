"""Counts the tokens that each attention of a graph sees.

An attention is a ``sized_attention``, or a product of what a softmax gave with values, both by
heads: (B, H, N, M) and (B, H, M, C), or (B·H, N, M) and (B·H, M, C). An einsum of two factors is a
product of this form once a graph is rewritten. One of (B, N, M) alone is none, as softmaxes mix
tokens elsewhere too.

Between softmax and product tokens may be dropped or merged, as MCTF does with the next block's
attention (Lee et al., CVPR 2024, section 3.3); then those that are left are counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.export import ExportedProgram
from torch.fx import Node

from tokexport.graph_passes.ops.ops import NAMESPACE
from tokexport.graph_passes.torch_passes.graph.calls import (
    is_call,
    is_tensor,
    operand,
    operator_name,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import aten
from tokexport.graph_passes.torch_passes.kinds.product_kinds import ProductKinds, factors

_BY_HEADS = 4  # axes: batch, heads, queries, keys


def token_schedule(program: ExportedProgram) -> tuple[int, ...]:
    """Returns the number of keys of each attention, in the order of the graph."""
    return tuple(shape_of(values)[-2] for _, values in attentions(program))


def attentions(program: ExportedProgram) -> Iterator[tuple[Node, Node]]:
    """Yields each attention in the order of the graph, with the values that it weighs."""
    kinds, images = ProductKinds(program), _images(program)
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if operator_name(node) == f"{NAMESPACE}.sized_attention":
            yield node, operand(node, "v")
        elif is_call(node, aten.matmul.default, aten.bmm.default):
            weights, values = factors(node)
            by_heads = all(_is_by_heads(shape_of(one), images) for one in (weights, values))
            if by_heads and kinds.reads_softmax(node):
                yield node, values


def _images(program: ExportedProgram) -> int:
    """Returns the leading size of the first input that has one; 1 where none has."""
    given = {*program.graph_signature.user_inputs}
    nodes = program.graph.find_nodes(op="placeholder")
    shapes = (shape_of(node) for node in nodes if node.name in given and is_tensor(node))
    return next((shape[0] for shape in shapes if shape), 1)


def _is_by_heads(shape: tuple[int, ...], images: int) -> bool:
    """Returns whether a factor has an axis of heads, beside that of the images or joined to it."""
    if len(shape) == _BY_HEADS - 1:
        return shape[0] > images and shape[0] % images == 0
    return len(shape) == _BY_HEADS
