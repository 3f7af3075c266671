"""Puts the project's native kernels into a model of OpenVINO when it is loaded.

A bundle holds operators of OpenVINO alone. Beside them the model says, in its runtime information,
which of its values a kernel can compute; the ONNX pass ``AnnotateKernelCalls`` wrote it. If the
library of kernels fits the installed OpenVINO, one operator of the library replaces those that
compute these values; otherwise the model runs as it is, and is slower.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from tokexport.runtimes.importing import import_runtime
from tokexport.runtimes.native_library import kernels_of

#: Where OpenVINO keeps the metadata of the ONNX model that it converted, and the key in it.
_PLACE: Final = ("framework", "tokexport.kernel_calls")


def put_kernels(openvino: ModuleType, model: Any, library: Path) -> int:
    """Replaces the values that the model names by native kernels.

    Args:
        openvino: The package.
        model: An ``openvino.Model``; it is changed.
        library: The library that fits this openvino.

    Returns:
        How many kernels there are in it now.
    """
    if not model.has_rt_info(list(_PLACE)):
        return 0
    factory = _factory(library)
    ports = {
        name: port
        for operator in model.get_ordered_ops()
        if operator.get_type_name() != "Result"  # it has the name of its input
        for port in operator.outputs()
        for name in port.get_names()
    }
    calls = json.loads(model.get_rt_info(list(_PLACE)).astype(str))
    return sum(_put(openvino, factory, ports, call) for call in calls)


@cache
def _factory(library: Path) -> Any:
    """Returns the function that makes operators of a library."""
    kernels_of(library)  # its code stays loaded for as long as there may be operators
    factory = import_runtime("openvino.utils.node_factory", extra="openvino").NodeFactory()
    factory.add_extension(library)
    return factory


def _put(openvino: ModuleType, factory: Any, ports: dict[str, Any], call: dict[str, Any]) -> bool:
    """Inserts the kernel of one call; returns False if one of its values is missing."""
    named = [one["name"] for one in (*call["inputs"], *call["outputs"]) if one.get("name")]
    if any(name not in ports for name in named):
        return False
    made = factory.create(
        "TokenOperator",
        [_input(openvino, ports, one) for one in call["inputs"]],
        {
            "operator": call["operator"],
            "attributes": list(call["attributes"]),
            "numbers": list(call["attributes"].values()),
            "output_shapes": [
                number for one in call["outputs"] for number in (len(one["shape"]), *one["shape"])
            ],
        },
    )
    for given, one in zip(made.outputs(), call["outputs"], strict=True):
        if one["name"] is None:
            continue
        port = ports[one["name"]]
        ports[one["name"]] = _as(openvino, given, port.get_element_type())
        port.replace(ports[one["name"]])
    return True


def _input(openvino: ModuleType, ports: dict[str, Any], one: dict[str, Any]) -> Any:
    """Returns the port that a kernel reads: float32, or int32 for indices."""
    if "fill" in one:
        kind = np.float32 if isinstance(one["fill"], float) else np.int32
        return openvino.opset1.constant(np.full(one["shape"], one["fill"], kind)).output(0)
    port = ports[one["name"]]
    is_real = port.get_element_type().is_real()
    return _as(openvino, port, openvino.Type.f32 if is_real else openvino.Type.i32)


def _as(openvino: ModuleType, port: Any, wanted: Any) -> Any:
    """Returns a port, converted where it is of another type."""
    if port.get_element_type() == wanted:
        return port
    return openvino.opset1.convert(port, wanted.get_type_name()).output(0)
