"""Counts the tokens that each attention of a graph sees.

An attention is a ``sized_attention``, or a product of what a softmax gave with values, both by
heads. Between the two, tokens may be dropped or merged, as MCTF does with the next block's
attention (Lee et al., CVPR 2024, section 3.3); then those that are left are counted.
"""

from __future__ import annotations

from torch.export import ExportedProgram

from tokexport.graph_passes.ops import NAMESPACE
from tokexport.graph_passes.product_kinds import ProductKinds, factors
from tokexport.graph_passes.torch_passes.calls import is_call, operand, operator_name, shape_of
from tokexport.graph_passes.torch_passes.editor import aten

_BY_HEADS = 4  # axes: batch, heads, queries, keys


def token_schedule(program: ExportedProgram) -> tuple[int, ...]:
    """Returns the number of keys of each attention, in the order of the graph."""
    kinds = ProductKinds(program)
    counts = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if operator_name(node) == f"{NAMESPACE}.sized_attention":
            counts.append(shape_of(operand(node, "k"))[2])
        elif is_call(node, aten.matmul.default):
            weights, values = (shape_of(factor) for factor in factors(node))
            if len(weights) == len(values) == _BY_HEADS and kinds.reads_softmax(node):
                counts.append(weights[-1])
    return tuple(counts)
