"""Drops attention masks that mask nothing.

Before → after::

    mask = (arange(N) >= 0).expand(B, H, N, N)          scaled_dot_product_attention(q, k, v)
    scaled_dot_product_attention(q, k, v, mask)    →

Libraries build full masks for models that need none (transformers makes one for every ViT). Only
a boolean mask that no input or weight reaches is computed here, and only when it is True everywhere
does it go.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    is_tensor,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.match.constant_values import ConstantValues


class DropFullMasks(TorchPass):
    """Takes constant masks without effect out of fused attention."""

    name: ClassVar[str] = "drop full masks"
    comes_before: ClassVar[tuple[str, ...]] = ("recognise attention",)

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many masks went."""
        changed = 0
        constants = ConstantValues()
        for node in edit.graph.nodes:
            if not is_call(node, aten.scaled_dot_product_attention.default):
                continue
            mask = argument(node, "attn_mask")
            if not is_tensor(mask) or dtype_of(mask) != torch.bool:
                continue
            constant = constants.of(mask)
            if constant is None or not bool(constant.all()):
                continue
            if len(node.args) > 3:
                node.args = (*node.args[:3], None, *node.args[4:])
            else:
                node.kwargs = {**node.kwargs, "attn_mask": None}
            changed += 1
        return changed
