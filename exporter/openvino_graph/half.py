"""Keeps operators that select and count tokens in float32 inside a narrower OpenVINO model.

Before → after, in the IR::

    MatMul(a, Transpose(b))                →  MatMul(a, b, transpose_b)
    Divide(x, y)                           →  Multiply(x, Power(y, [-1, -1, …]))
    ScatterElementsUpdate, version 12      →  version 3, where it only replaces
    <layer …>                              →  <layer …> with the attribute ``precise``

The CPU plugin computes a layer of that attribute in float32, but a layer that its own optimiser
rewrites loses it: the first three are the forms that it rewrites them to. Without it, ranks beyond
256 are not even distinct in bfloat16, and tokens of like scores are ties.
"""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from tokexport.exporter.openvino_graph.roles import operators_and_roles
from tokexport.exporter.openvino_graph.rows import put_rows_first
from tokexport.runtimes.importing import import_runtime
from tokexport.runtimes.openvino.runner import import_openvino


def keep_selection_wide(converted: Path, artifact: Path) -> None:
    """Rewrites a converted model: marks what selects and counts tokens, and puts rows first.

    Args:
        converted: The ``.xml`` of the IR, its ``.bin`` beside it.
        artifact: Where the new one goes; another folder.
    """
    openvino = import_openvino()
    model = openvino.Core().read_model(converted)
    turned = put_rows_first(model)
    exact = _exact(model)
    if not exact and not turned:
        for suffix in (".xml", ".bin"):
            shutil.copyfile(converted.with_suffix(suffix), artifact.with_suffix(suffix))
        return
    for operator in exact:
        _settle(operator)
    names = {operator.get_friendly_name() for operator in _exact(model)}
    openvino.save_model(model, str(artifact), compress_to_fp16=False)
    _mark(artifact, names)


def _exact(model: Any) -> list[Any]:
    """Returns the operators that stay in float32."""
    operators, roles = operators_and_roles(model)
    return [operators[i] for i in sorted(roles.exact)]


def _settle(operator: Any) -> None:
    """Replaces an operator by the form that the plugin's optimiser leaves alone."""
    match operator.get_type_name():
        case "MatMul":
            new = _turned_product(operator)
        case "Divide":
            new = _product_with_inverse(operator)
        case "ScatterElementsUpdate":
            new = _plain_scatter(operator)
        case _:
            return
    if new is not None:
        new.set_friendly_name(operator.get_friendly_name())
        operator.output(0).replace(new.output(0))


def _turned_product(operator: Any) -> Any:
    second = operator.input_value(1).get_node()
    turned = operator.get_attributes().get("transpose_b", False)
    if second.get_type_name() != "Transpose":
        return None
    order = second.input_value(1).get_node()
    if order.get_type_name() != "Constant":
        return None
    axes = [int(axis) for axis in order.get_data()]
    if axes != [*range(len(axes) - 2), len(axes) - 1, len(axes) - 2]:
        return None
    first = operator.get_attributes().get("transpose_a", False)
    opset = import_runtime("openvino.opset13", extra="openvino")
    return opset.matmul(operator.input_value(0), second.input_value(0), first, not turned)


def _product_with_inverse(operator: Any) -> Any:
    dividend, divisor = operator.input_value(0), operator.input_value(1)
    if dividend.get_element_type().get_type_name() != "f32":
        return None
    opset = import_runtime("openvino.opset13", extra="openvino")
    # The optimiser joins a product with a power of the one number -1 to a division again.
    exponents = np.full(divisor.get_shape(), -1.0, np.float32)
    inverse = opset.power(divisor, opset.constant(exponents))
    inverse.set_friendly_name(f"{operator.get_friendly_name()}/inverse")
    return opset.multiply(dividend, inverse)


def _plain_scatter(operator: Any) -> Any:
    attributes = operator.get_attributes()
    if attributes.get("reduction", "none") != "none":
        return None
    opset = import_runtime("openvino.opset3", extra="openvino")
    return opset.scatter_elements_update(*(operator.input_value(i) for i in range(4)))


def _mark(xml: Path, names: Collection[str]) -> None:
    """Gives the layers of these names the attribute that keeps them in float32."""
    tree = ElementTree.parse(xml)
    layers = tree.getroot().find("layers")
    assert layers is not None
    for layer in layers:
        if layer.get("name") not in names:
            continue
        info = layer.find("rt_info")
        if info is None:
            info = ElementTree.Element("rt_info")
            layer.insert(0 if layer.find("data") is None else 1, info)
        ElementTree.SubElement(info, "attribute", name="precise", version="0")
    tree.write(xml, encoding="utf-8", xml_declaration=True)
