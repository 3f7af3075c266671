"""Types a graph in half precision, for a builder that follows the types of the graph.

Before → after::

    MatMul(x, W), Conv, Gelu, Add, …     all float32
    →  the same of Cast(x) and W in half
    Softmax(a), LayerNormalization(x)    →  float32, of and to half
    scores, sizes, one-hot products      →  float32 throughout
    inputs and outputs of the model      →  float32

Float32 stay: what selects and counts tokens and moves them by counts (``precision_roles``), sums
over an axis, exponentials, logarithms, roots and quotients, which overflow or cancel in half, and
what only passes rows of these results on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from tokexport.graph_passes.errors import PassError
from tokexport.graph_passes.onnx_passes.graph.initializers import add_initializer
from tokexport.graph_passes.onnx_passes.graph.linears import roles_of_nodes
from tokexport.graph_passes.onnx_passes.graph.node_pass import Counted, OnnxPass

#: Operators that sum over an axis or leave the range of half on the way.
_SENSITIVE: Final = frozenset(
    {
        *("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "GroupNormalization"),
        *("InstanceNormalization", "BatchNormalization", "LpNormalization", "CumSum"),
        *("ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare"),
        *("ReduceLogSum", "ReduceLogSumExp", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Div"),
        *("Sin", "Cos", "Tan", "Softplus", "TopK", "Resize", "GridSample"),
    }
)
#: Operators whose result has a type of its own, whatever they read.
_OWN_TYPE: Final = frozenset({"Cast", "ConstantOfShape", "EyeLike", "Range"})
#: Operators that only pass rows on.
_PASSING: Final = frozenset(
    {
        *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity"),
        *("Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)

#: The largest finite numbers: IEEE 754 binary16, and bfloat16.
_LARGEST: Final = {
    ir.DataType.FLOAT16: 65504.0,
    ir.DataType.BFLOAT16: (2 - 2**-7) * 2.0**127,
}


@dataclass(frozen=True)
class CastToHalf(OnnxPass):
    """Casts weights and activations of a graph without functions to a half precision.

    Attributes:
        dtype: ``FLOAT16`` or ``BFLOAT16``.
    """

    name = "cast to half"
    dtype: ir.DataType

    def requires(self, model: ir.Model) -> None:
        """Raises PassError where functions are not inlined yet."""
        if model.functions:
            raise PassError(f"The pass '{self.name}' needs a graph without functions.")

    def call(self, model: ir.Model) -> Counted:
        """Rewrites in place; counts the values that become half."""
        ShapeInferencePass()(model)
        roles, places = roles_of_nodes(model.graph)
        exact = {node for node, place in places.items() if place in roles.exact}
        caster = _Caster(model, self.dtype)
        for node in list(model.graph):
            if node.domain == "" and node.op_type == "Constant":
                continue
            if node in exact or caster.stays_wide(node):
                caster.feed(node, ir.DataType.FLOAT)
            else:
                caster.feed(node, self.dtype)
                caster.narrow(node)
        return Counted(model, caster.narrowed > 0, caster.narrowed)


class _Caster:
    """Casts the inputs and results of nodes, each value once.

    Args:
        model: The model.
        half: The half precision.
    """

    def __init__(self, model: ir.Model, half: ir.DataType) -> None:
        self._model = model
        self._half = half
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.narrowed = 0

    def stays_wide(self, node: ir.Node) -> bool:
        """Returns whether a node computes in float32 whatever its role."""
        if node.domain != "" or node.op_type in _SENSITIVE | _OWN_TYPE:
            return True
        if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            return True
        return node.op_type in _PASSING and any(
            value is not None and value.dtype == ir.DataType.FLOAT and value.producer() is not None
            for value in node.inputs
            if value is not None and ir.convenience.get_const_tensor(value) is None
        )

    def feed(self, node: ir.Node, dtype: ir.DataType) -> None:
        """Makes a node read every floating value in a type."""
        for position, value in enumerate(node.inputs):
            if value is not None and value.dtype in (ir.DataType.FLOAT, self._half):
                node.replace_input_with(position, self._as(value, dtype, node))

    def narrow(self, node: ir.Node) -> None:
        """Types the float32 results of a node in half; an output of the model is cast back."""
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT:
                continue
            value.type = ir.TensorType(self._half)  # a clone of the model shares the old one
            self.narrowed += 1
            if value.is_graph_output():
                self._cast_back(value, node)

    def _as(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        if value.dtype == dtype:
            return value
        key = value, dtype
        if key not in self._casts:
            constant = ir.convenience.get_const_tensor(value)
            if constant is not None:
                self._casts[key] = self._narrowed_constant(value, constant)
            else:
                cast = self._cast(value, dtype)
                maker = value.producer()
                graph = self._model.graph
                if maker is not None:
                    graph.insert_after(maker, cast)
                else:
                    graph.insert_before(reader, cast)
                self._casts[key] = cast.outputs[0]
        return self._casts[key]

    def _narrowed_constant(self, value: ir.Value, constant: ir.TensorProtocol) -> ir.Value:
        """Adds a weight in half; a finite number beyond its range becomes the largest one."""
        dtype = self._half.numpy()
        largest = _LARGEST[self._half]
        array: np.ndarray[Any, Any] = constant.numpy()
        array = np.where(np.isfinite(array), np.clip(array, -largest, largest), array).astype(dtype)
        name = f"{value.name}_{self._half.name.lower()}"
        return add_initializer(self._model.graph, name, array)

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Node:
        name = f"{value.name}_{dtype.name.lower()}"
        attributes = ir.convenience.convert_attributes({"to": dtype})
        cast = ir.Node("", "Cast", (value,), attributes=attributes, name=name)
        result = cast.outputs[0]
        result.name, result.type, result.shape = name, ir.TensorType(dtype), value.shape
        return cast

    def _cast_back(self, value: ir.Value, node: ir.Node) -> None:
        """Gives an output of the model its name and float32 again, behind a cast."""
        graph = self._model.graph
        name = value.name
        value.name = f"{name}_{self._half.name.lower()}"
        cast = self._cast(value, ir.DataType.FLOAT)
        graph.insert_after(node, cast)
        result = cast.outputs[0]
        result.name = name
        self._casts[value, ir.DataType.FLOAT] = result
        for position, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[position] = result
