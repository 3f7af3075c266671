"""Multiplies by a gain that is no vector of channels before a norm divides.

Before → after, for a gain of one number, or of one for each token::

    d / s * gain   →  d * gain / s

ONNX Runtime's optimizer takes a division and a product behind it for a layer norm, whatever the
shape of the gain, and fails when the norm runs behind a residual sum.
"""

from __future__ import annotations

from typing import ClassVar

from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    is_call,
    is_tensor,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass


class ScaleBeforeNorm(TorchPass):
    """Exchanges a division and a product with a gain of fewer numbers than channels."""

    name: ClassVar[str] = "scale before norm"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many gains it moved."""
        changed = 0
        for node in list(edit.graph.nodes):
            if not is_call(node, aten.mul.Tensor):
                continue
            for quotient, gain in (node.args[:2], node.args[1::-1]):
                if _is_norm(quotient) and _is_narrow(gain, node):
                    with edit.before(node):
                        top, bottom = quotient.args[:2]
                        new = edit.call(aten.mul.Tensor, top, gain)
                        edit.replace(node, edit.call(aten.div.Tensor, new, bottom))
                    changed += 1
                    break
        return changed


def _is_norm(node: object) -> bool:
    """Returns whether a node divides by a number for each token."""
    if not is_call(node, aten.div.Tensor) or not isinstance(node, Node):
        return False
    if not is_tensor(node.args[1]) or len(node.users) > 1:
        return False
    return shape_of(operand(node, "other"))[-1:] == (1,)


def _is_narrow(gain: object, product: Node) -> bool:
    """Returns whether a weight or a constant has one number for all channels."""
    if not isinstance(gain, Node) or gain.op != "placeholder":
        return False
    return shape_of(gain)[-1:] in ((), (1,)) and shape_of(product)[-1:] not in ((), (1,))
