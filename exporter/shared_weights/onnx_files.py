"""Lets several ONNX files read their weights from one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import onnx_ir as ir

from tokexport.exporter.shared_weights.pool import WeightPool

#: A tensor of fewer bytes stays in the file of its model.
_SMALLEST: Final = 1024


def share_onnx_weights(places: Mapping[Path, Path]) -> None:
    """Writes models anew, with one file of weights beside them: ``NAME.data`` of the first.

    Args:
        places: Where each model goes, by where it is; all go into one folder. A model may go where
            it is.
    """
    first = next(iter(places.values()))
    shared = first.with_name(f"{first.name}.data")
    partial = shared.with_name(f"{shared.name}.partial")
    models = {target: ir.load(source) for source, target in places.items()}
    with partial.open("wb") as file:
        pool = WeightPool(file)
        for model in models.values():
            for name, value in model.graph.initializers.items():
                tensor = value.const_value
                if tensor is None:
                    continue
                if tensor.nbytes < _SMALLEST and not isinstance(tensor, ir.ExternalTensor):
                    continue  # one that lies outside lies in a file that is not read any more
                offset = pool.place(tensor.tobytes())
                value.const_value = ir.ExternalTensor(
                    shared.name,
                    offset,
                    tensor.nbytes,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=name,
                    base_dir=shared.parent,
                )
    for target, model in models.items():
        ir.save(model, target)
    partial.replace(shared)
