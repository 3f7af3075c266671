"""Counts the tokens that each attention of a graph sees.

An attention is a ``sized_attention``, or a product of what a softmax gave with values, both by
heads. Between the two, tokens may be dropped or merged, as MCTF does with the next block's
attention (Lee et al., CVPR 2024, section 3.3); then those that are left are counted.
"""

from __future__ import annotations

from torch.fx import Graph, Node

from tokexport.graph_passes.ops import NAMESPACE
from tokexport.graph_passes.torch_passes.calls import (
    dtype_of,
    is_call,
    is_tensor,
    operand,
    operator_name,
    shape_of,
)
from tokexport.graph_passes.torch_passes.editor import aten

_SOFTMAXES = (aten.softmax.int, aten._softmax.default)
_LAYERS = (aten.linear.default, aten.addmm.default, aten.bmm.default)
_BY_HEADS = 4  # axes: batch, heads, queries, keys


def token_schedule(graph: Graph) -> tuple[int, ...]:
    """Returns the number of keys of each attention, in the order of the graph."""
    shares: set[Node] = set()  # what is still made of a softmax's results, and of no product
    counts = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if operator_name(node) == f"{NAMESPACE}.sized_attention":
            counts.append(shape_of(operand(node, "k"))[2])
        elif is_call(node, aten.matmul.default):
            weights, values = node.args[:2]
            if weights in shares and len(shape_of(weights)) == len(shape_of(values)) == _BY_HEADS:
                counts.append(shape_of(weights)[-1])
        elif is_call(node, *_LAYERS) or is_tensor(node) and not dtype_of(node).is_floating_point:
            continue
        elif is_call(node, *_SOFTMAXES) or any(part in shares for part in node.all_input_nodes):
            shares.add(node)
    return tuple(counts)
