"""Writes a slope that is drawn in training as its constant of evaluation.

Before → after::

    rrelu(x, lower, upper)   →  leaky_relu(x, (lower + upper) / 2)

A call that draws is left alone. ONNX has no operator with a drawn slope.
"""

from __future__ import annotations

from typing import ClassVar

from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import argument, operand
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling


class SpellOutSlopes(NodePass):
    """Rewrites ``rrelu`` of evaluation."""

    name: ClassVar[str] = "spell out slopes"

    targets = (aten.rrelu.default,)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches a slope that is not drawn."""
        if argument(node, "training"):
            return Reason("its slope is drawn, as while training")
        return _spelled


def _spelled(edit: Editor, node: Node) -> Node:
    slope = (float(argument(node, "lower")) + float(argument(node, "upper"))) / 2
    return edit.call(aten.leaky_relu.default, operand(node), slope)
