"""Folds constants that do not depend on the input: shapes, ranges, axes.

Before → after::

    Range(0, Squeeze(Shape(x)), 1)   →   Constant [0, 1, 2, …]

TensorRT wants the axes of a reduction as constants, so this comes right behind inlining. Weights
are above the size limit and stay as they are; only the transpose of one that is read nowhere else
takes its place.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import onnx_ir as ir
from onnxscript import optimizer

from tokexport.graph_passes.onnx_passes.every_target.annotate_kernel_calls import call_names_kept
from tokexport.graph_passes.onnx_passes.graph.node_pass import OnnxPass

#: Elements above which a constant is not folded.
LARGEST_FOLDED: Final = 64 * 1024


class FoldConstants(OnnxPass):
    """Folds until nothing changes, and drops unread values."""

    name = "fold constants"
    comes_before = ("correct integer division", "fold by deconvolution", "refuse for tensorrt")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds in place."""
        before = model.graph.num_nodes()
        nodes = -1
        with call_names_kept(model), _log_silenced():
            while model.graph.num_nodes() != nodes:
                nodes = model.graph.num_nodes()
                optimizer.fold_constants(
                    model, input_size_limit=LARGEST_FOLDED, output_size_limit=LARGEST_FOLDED
                )
                optimizer.remove_unused_nodes(model)
        return ir.passes.PassResult(model, modified=model.graph.num_nodes() != before)


@contextmanager
def _log_silenced() -> Iterator[None]:
    """Keeps off stderr which calls on constants the optimizer leaves: those of several results."""
    logger = logging.getLogger(optimizer.__name__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
