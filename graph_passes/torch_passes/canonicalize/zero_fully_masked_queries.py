"""Makes fully masked queries zero, as torch does.

Before → after, with a mask of truth values::

    y = scaled_dot_product_attention(q, k, v, mask)
        →  where(any(mask, -1), scaled_dot_product_attention(q, k, v, mask), 0)

Where a mask hides all keys from a query, torch returns zeros. The stock exporter writes the mask
with the least finite number in place of -∞, so this query gets the mean of all values: a model that
drops tokens by masking them is wrong then, and only on inputs that drop one.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import argument, dtype_of, is_call, is_tensor
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.match.constant_values import ConstantValues


class ZeroFullyMaskedQueries(TorchPass):
    """Guards fused attention under a boolean mask."""

    name: ClassVar[str] = "zero fully masked queries"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many attentions it guards."""
        changed = 0
        constants = ConstantValues()
        for node in list(edit.graph.nodes):
            if not is_call(node, aten.scaled_dot_product_attention.default):
                continue
            mask = argument(node, "attn_mask")
            if not is_tensor(mask) or dtype_of(mask) != torch.bool:
                continue
            fixed = constants.of(mask)
            if fixed is None or not bool(fixed.any(-1).all()):
                _guard(edit, node, mask)
                changed += 1
        return changed


def _guard(edit: Editor, node: Node, mask: Node) -> None:
    readers = list(node.users)
    with edit.after(node, origin=node):
        sees = edit.call(aten.any.dim, mask, -1, True)
        zero = edit.call(aten.full.default, [], 0.0, dtype=dtype_of(node))
        guarded = edit.call(aten.where.self, sees, node, zero)
    for reader in readers:
        reader.replace_input_with(node, guarded)
