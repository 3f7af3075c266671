"""Finds the operators of an OpenVINO model that select and count tokens."""

from __future__ import annotations

from typing import Any, Final

from tokexport.graph_passes.onnx_passes.graph.precision_roles import (
    Roles,
    Step,
    is_marked,
    roles_of,
)

_FLOATS: Final = ("f16", "bf16", "f32", "f64")
_CONVOLUTIONS: Final = ("Convolution", "ConvolutionBackpropData", "GroupConvolution")
#: Operators whose later inputs give a type or a shape, and no numbers.
_READS_ONE: Final = ("ConvertLike", "ShapeOf")
#: Operators between a constant and the product that reads it; bytes have a scale.
_KEEP_A_WEIGHT: Final = (
    "Convert", "FakeQuantize", "Multiply", "Reshape", "Subtract", "Transpose"
)  # fmt: skip

#: Operators that change the type or shape of a constant.
_KEEP_A_SHAPE: Final = ("Convert", "Reshape", "Transpose", "Unsqueeze")


def operators_and_roles(model: Any) -> tuple[list[Any], Roles]:
    """Returns the operators of an ``openvino.Model`` in order, and their roles by position."""
    operators = list(model.get_ordered_ops())
    places = {name(operator): i for i, operator in enumerate(operators)}
    return operators, roles_of([_step(operator, places) for operator in operators])


def name(operator: Any) -> str:
    """The operator's unique name within its model."""
    unique: str = operator.get_name()
    return unique


def is_linear(product: Any) -> bool:
    """Returns whether a MatMul multiplies rows by a constant matrix."""
    return any(_is_weight(port.get_source_output()) for port in product.inputs())


def _step(operator: Any, places: dict[str, int]) -> Step:
    kind = operator.get_type_name()
    sources = [port.get_source_output() for port in operator.inputs()]
    if kind in _READS_ONE:
        sources = sources[:1]
    return Step(
        reads=tuple((places[name(one.get_node())], one.get_index()) for one in sources),
        decides=tuple(
            port.get_element_type().get_type_name() not in _FLOATS for port in operator.outputs()
        ),
        constant=kind == "Constant",
        given=kind == "Parameter",
        answers=kind == "Result",
        wide=any(map(_reads_marked, sources)),
        linear=kind == "MatMul" and is_linear(operator),
        convolves=kind in _CONVOLUTIONS,
    )


def _reads_marked(source: Any) -> bool:
    """Returns whether a marked constant comes out of a port, in whatever shape."""
    node = source.get_node()
    while node.get_type_name() in _KEEP_A_SHAPE:
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and is_marked(node.get_friendly_name())


def is_fixed(source: Any) -> bool:
    """Returns whether what comes out of a port depends on no input of the model.

    A deep model has thousands of operators in a row, and paths that meet again: each is seen once.
    """
    ahead, seen = [source.get_node()], set()
    while ahead:
        node = ahead.pop()
        if name(node) in seen or node.get_type_name() in ("Constant", "ShapeOf"):
            continue  # sizes are fixed too
        seen.add(name(node))
        inputs = node.input_values()
        if not inputs:
            return False
        ahead += [one.get_node() for one in inputs]
    return True


def _is_weight(source: Any) -> bool:
    """Returns whether a constant matrix comes out of a port, maybe turned or decompressed."""
    node = source.get_node()
    while node.get_type_name() in _KEEP_A_WEIGHT:
        if not all(map(is_fixed, node.input_values()[1:])):
            return False
        node = node.input_value(0).get_node()
    axes: int = source.get_partial_shape().rank.get_length()
    return node.get_type_name() == "Constant" and axes == 2
