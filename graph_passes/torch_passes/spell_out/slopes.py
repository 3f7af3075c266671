"""Writes a slope that is drawn while training as the one that it has in evaluation.

Before → after::

    rrelu(x, lower, upper)   →  leaky_relu(x, (lower + upper) / 2)

A call that draws is left alone. ONNX has no operator with a drawn slope.
"""

from __future__ import annotations

from typing import ClassVar

from tokexport.graph_passes.torch_passes.graph.calls import argument, is_call, operand
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.infrastructure import TorchPass


class SpellOutSlopes(TorchPass):
    """Rewrites ``rrelu`` of evaluation."""

    name: ClassVar[str] = "spell out slopes"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many calls it changed."""
        changed = 0
        for node in list(edit.graph.nodes):
            if not is_call(node, aten.rrelu.default) or argument(node, "training"):
                continue
            slope = (float(argument(node, "lower")) + float(argument(node, "upper"))) / 2
            with edit.before(node):
                edit.replace(node, edit.call(aten.leaky_relu.default, operand(node), slope))
            changed += 1
        return changed
