"""Gives a vector a second axis where TensorRT takes none of rank 1.

Before → after::

    ArgMax(x, axis=0)      x (N,)   →   Squeeze(ArgMax(Unsqueeze(x, 0), axis=1), 0)
    TopK(x, k, axis=0)     x (N,)   →   the same of both results
    Softmax(x)             x (N,)   →   Squeeze(Softmax(Unsqueeze(x, 0), axis=1), 0)

Measured with TensorRT-RTX 1.7.1: "at least 2 dimensions are required for input", of ArgMax, ArgMin
and Softmax; TopK is documented so for TensorRT 10.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement

_OPERATORS: Final = ("ArgMax", "ArgMin", "Hardmax", "LogSoftmax", "Softmax", "TopK")


class WidenVectors(ir.passes.InPlacePass):
    """Lets operators along an axis work on matrices of one row instead of vectors."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        found = [node for node in model.graph.all_nodes() if _takes_a_vector(node)]
        for node in found:
            _widen(node)
        return ir.passes.PassResult(model, modified=bool(found))


def _takes_a_vector(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type not in _OPERATORS:
        return False
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return shape is not None and shape.rank() == 1


def _widen(node: ir.Node) -> None:
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
