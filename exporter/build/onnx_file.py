"""Writes ONNX files, also of models that exceed the limit of one protobuf."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

#: A protobuf holds 2 GB at most; above this many bytes of weights they go into a file of their own.
EXTERNAL_DATA_BYTES = 1_800_000_000


def save_onnx(model: ir.Model, path: Path) -> None:
    """Writes an ONNX file; above ``EXTERNAL_DATA_BYTES`` its weights lie beside it, NAME.data."""
    weights = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    beside = f"{path.name}.data" if weights > EXTERNAL_DATA_BYTES else None
    ir.save(model, path, external_data=beside)
