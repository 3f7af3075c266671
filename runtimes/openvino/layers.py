"""Reads precisions and fusions from the layers that OpenVINO's CPU plugin compiled.

Layers are the operators of ``CompiledModel.get_runtime_model()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

#: The layers of the compiled model that hold nearly all the arithmetic.
_HEAVY: Final = ("FullyConnected", "MatMul", "Convolution", "ScaledDotProductAttention")


def layer_precisions(layers: Sequence[Any]) -> list[str]:
    """Returns the precisions that the heavy layers run in, in OpenVINO's words, sorted."""
    heavy = [one for one in layers if _text(one, "layerType") in _HEAVY]
    return sorted({_text(one, "runtimePrecision") for one in heavy})


def attentions(model: Any, layers: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Returns the softmaxes of attentions that the plugin fused, and those that it did not.

    Fused, one generated kernel holds the softmax and both products. That depends on the processor,
    and on what stands between them.

    Args:
        model: The ``openvino.Model``.
        layers: The layers that it was compiled to.

    Returns:
        The names of the operators in the model.
    """
    named = {one.get_friendly_name(): one for one in model.get_ops()}
    made_of = [
        {name for name in _text(layer, "originalLayersNames").split(",") if name in named}
        for layer in layers
    ]
    fused: list[str] = []
    apart: list[str] = []
    for name, operator in named.items():
        if operator.get_type_name() != "Softmax" or not _weighs_values(operator):
            continue
        holders = [names for names in made_of if name in names]
        products = [
            sum(named[one].get_type_name() == "MatMul" for one in names) for names in holders
        ]
        (fused if max(products, default=0) == 2 else apart).append(name)
    return fused, apart


def _weighs_values(softmax: Any) -> bool:
    """Returns whether a product reads what a softmax gives, maybe quantised."""
    readers = [port.get_node() for port in softmax.output(0).get_target_inputs()]
    return any(one.get_type_name() in ("MatMul", "FakeQuantize") for one in readers)


def _text(layer: Any, key: str) -> str:
    text: str = layer.rt_info[key].astype(str)
    return text
