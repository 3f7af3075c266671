"""Estimates the constants that OpenVINO would compute while it compiles a model."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, Final

from tokexport.runtimes.files.ir_contents import weights_beside

#: Bytes that a constant may always have; beyond it, at most those of the weights.
_SMALL: Final = 1 << 26
#: The parts of a tensor that are known without its numbers.
_SHAPES: Final = ("ShapeOf", "Rank")


def folds_too_far(model: Any, path: Path) -> str:
    """Returns which computed constant is larger than all weights; '' for none.

    Args:
        model: The ``openvino.Model`` as it was read, which computes nothing.
        path: Its ``.xml``; the file of its weights lies beside it.
    """
    weights = weights_beside(path)
    most = max(_SMALL, weights.stat().st_size if weights.is_file() else 0)
    unreached: set[str] = set()
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        inputs = [value.get_node().get_name() for value in node.input_values()]
        if kind == "Constant" or kind in _SHAPES:
            unreached.add(node.get_name())
        elif inputs and unreached.issuperset(inputs):
            unreached.add(node.get_name())
            for value in node.outputs():
                shape = value.get_partial_shape()
                size = value.get_element_type().size
                if shape.is_static and prod(shape.to_shape()) * size > most:
                    return f"{kind} '{node.get_friendly_name()}' of shape {list(shape.to_shape())}"
    return ""
