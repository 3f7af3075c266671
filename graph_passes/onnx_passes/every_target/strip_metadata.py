"""Removes metadata, docstrings and source lines from a model.

The metadata that native kernels need stay.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from tokexport.graph_passes.onnx_passes.every_target.annotate_kernel_calls import KERNEL_CALLS
from tokexport.graph_passes.onnx_passes.graph.node_pass import OnnxPass
from tokexport.graph_passes.onnx_passes.graph.source_lines import keep_lines


class StripMetadata(OnnxPass):
    """Removes traces of the user's machine from the artifact."""

    name = "strip metadata"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Clears in place; the lines stay in memory, where ``lines_by_node`` finds them."""
        keep_lines(model)
        calls = model.metadata_props.get(KERNEL_CALLS)
        result = ClearMetadataAndDocStringPass()(model)
        if calls is not None:
            model.metadata_props[KERNEL_CALLS] = calls
        return ir.passes.PassResult(model, modified=result.modified)
