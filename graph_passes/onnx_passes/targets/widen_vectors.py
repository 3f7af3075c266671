"""Gives a vector a second axis where TensorRT takes none of rank 1.

Before → after::

    ArgMax(x, axis=0)      x (N,)   →   Squeeze(ArgMax(Unsqueeze(x, 0), axis=1), 0)
    TopK(x, k, axis=0)     x (N,)   →   the same of both results
    Softmax(x)             x (N,)   →   Squeeze(Softmax(Unsqueeze(x, 0), axis=1), 0)

Measured with TensorRT-RTX 1.7.1: "at least 2 dimensions are required for input", of ArgMax, ArgMin
and Softmax; TopK is documented so for TensorRT 10.
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.pass_report import Reason


class WidenVectors(NodePass):
    """Makes operators along an axis work on matrices of one row instead of vectors."""

    name = "widen vectors"
    op_types = ("ArgMax", "ArgMin", "Hardmax", "LogSoftmax", "Softmax", "TopK")
    in_subgraphs = True

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches an operator that reads a vector (N,)."""
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if shape is None:
            return Reason("the shape that it reads is not known")
        return partial(_rewrite, node) if shape.rank() == 1 else None


def _rewrite(node: ir.Node) -> None:
    new = Replacement(node)
    first = new.integers(0)
    row = new.call("Unsqueeze", node.inputs[0], first)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    result = new.call(
        node.op_type,
        row,
        *node.inputs[1:],
        outputs=len(node.outputs),
        **{**attributes, "axis": 1},
    )
    made = result.producer()
    assert made is not None
    new.put(*(new.call("Squeeze", value, first) for value in made.outputs))
