"""Refuses, before any build, operators that TensorRT's parser or builder does not take.

Measured with TensorRT-RTX 1.7.1 and known of TensorRT 10 and 11. The parser's own messages name
neither the node nor the line (``Unsupported reduction type``); here both are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import onnx_ir as ir

from tokexport.graph_passes.errors import OperatorRefusedError
from tokexport.graph_passes.onnx_passes.graph.node_pass import OnnxPass
from tokexport.graph_passes.onnx_passes.graph.source_lines import node_place

#: The largest K of TensorRT's TopK; a larger one parses and then fails to build.
LARGEST_TOP_K: Final = 3840


def _reduces(node: ir.Node) -> str:
    mode = node.attributes.get_string("reduction", "none")
    return "" if mode == "none" else f"a scatter with reduction '{mode}'"


def _antialiases(node: ir.Node) -> str:
    return "antialiasing" if node.attributes.get_int("antialias", 0) else ""


def _sorts_too_much(node: ir.Node) -> str:
    data, count = node.inputs[0], node.inputs[1]
    if _holds_integers(data):
        return "a top-k of integers"
    constant = ir.convenience.get_const_tensor(count) if count is not None else None
    k = int(constant.numpy().item()) if constant is not None else 0
    return f"a top-k with K = {k}, above {LARGEST_TOP_K}" if k > LARGEST_TOP_K else ""


def _holds_integers(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in (ir.DataType.INT32, ir.DataType.INT64)


def _multiplies_integers(node: ir.Node) -> str:
    return "a product of integer matrices" if _holds_integers(node.inputs[0]) else ""


def _always(node: ir.Node) -> str:
    return f"the operator {node.op_type}"


_REFUSED: Final[dict[str, Callable[[ir.Node], str]]] = {
    "ScatterElements": _reduces,
    "ScatterND": _reduces,
    "Resize": _antialiases,
    "TopK": _sorts_too_much,
    "MatMul": _multiplies_integers,
    "NonZero": _always,
    "Compress": _always,
    "Unique": _always,
    "DFT": _always,
}
_WAYS_OUT: Final = {
    "ScatterElements": "Scatter floating-point rows: those are lowered to a one-hot product.",
    "ScatterND": "Scatter floating-point rows: those are lowered to a one-hot product.",
    "TopK": "Sort floats, or sort fewer of them.",
    "MatMul": "Multiply floats.",
    "DFT": "Multiply by the constant DFT matrix: at a fixed size it is the same.",
    "Resize": "Resize without antialiasing, or before the model.",
}


class RefuseForTensorRt(OnnxPass):
    """Raises OperatorRefusedError for the first node that TensorRT would refuse."""

    name = "refuse for tensorrt"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Changes nothing."""
        for refusal in refusals(model):
            raise refusal
        return ir.passes.PassResult(model, modified=False)


def refusals(model: ir.Model) -> Iterator[OperatorRefusedError]:
    """Yields, in the order of the graph, an error for each node that TensorRT would refuse."""
    for node in model.graph.all_nodes():
        check = _REFUSED.get(node.op_type) if node.domain == "" else None
        what = check(node) if check else ""
        if what:
            yield OperatorRefusedError(
                f"TensorRT does not take {what}.",
                where=node_place(node),
                fix=_WAYS_OUT.get(
                    node.op_type, "Write that line with a fixed number of results (top-k)."
                ),
            )
