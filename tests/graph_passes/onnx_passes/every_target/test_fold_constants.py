"""What no input reaches is computed once, and in silence."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir
import pytest

from tokexport.graph_passes.onnx_passes.every_target.fold_constants import FoldConstants


def of_constants() -> ir.Model:
    """Y = x + (2 · the first half of a constant), by a call of two results."""
    x = ir.val("x", ir.DataType.FLOAT, [2])
    held = ir.val("held", ir.DataType.FLOAT, [4], const_value=ir.tensor(np.float32([1, 2, 3, 4])))
    two = ir.val("two", ir.DataType.FLOAT, [], const_value=ir.tensor(np.float32(2)))
    split = ir.node("Split", [held], {"num_outputs": 2, "axis": 0}, num_outputs=2)
    doubled = ir.node("Mul", [two, two])
    product = ir.node("Mul", [split.outputs[0], doubled.outputs[0]])
    y = ir.val("y", ir.DataType.FLOAT, [2])
    total = ir.node("Add", [x, product.outputs[0]], outputs=[y])
    nodes = [split, doubled, product, total]
    graph = ir.Graph([x], [y], nodes=nodes, initializers=[held, two], opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


def test_it_folds_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = of_constants()
    with caplog.at_level(logging.WARNING):
        FoldConstants()(model)
    assert [node.op_type for node in model.graph if node.op_type == "Mul"] == ["Mul"]
    assert caplog.records == []
