"""Gives fused attention of any rank the four axes that every target takes.

Before → after::

    scaled_dot_product_attention(q, k, v)        q (A, …, H, N, D)
    →  reshape(scaled_dot_product_attention(q', k', v'), …)      q' (A·…, H, N, D)

Window attention is written with a window axis of its own, (B, W, H, N, D). Three axes are those of
one head, (B, N, D) → (B, 1, N, D). A mask that is one for all of the joined axes is not spread.
"""

from __future__ import annotations

from math import prod
from typing import ClassVar

from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    is_call,
    is_tensor,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass


class AttentionToRank4(TorchPass):
    """Joins the outer axes of fused attention, or adds the missing ones."""

    name: ClassVar[str] = "attention to rank 4"
    comes_before: ClassVar[tuple[str, ...]] = ("recognise attention",)

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many attentions it took."""
        changed = 0
        for node in list(edit.graph.nodes):
            if is_call(node, aten.scaled_dot_product_attention.default) and _fits(node):
                with edit.before(node):
                    edit.replace(node, _flattened(edit, node))
                changed += 1
        return changed


def _fits(node: Node) -> bool:
    """Returns whether q, k and v are of one rank other than four, and alike outside."""
    q, k, v = (shape_of(operand(node, name)) for name in ("query", "key", "value"))
    return (
        len(q) == len(k) == len(v) != 4
        and len(q) > 1
        and q[:-2] == k[:-2] == v[:-2]
        and not argument(node, "enable_gqa")
    )


def _flattened(edit: Editor, node: Node) -> Node:
    """Inserts the attention of four axes, and the reshape back."""
    q = operand(node, "query")
    outer, heads = _split(shape_of(q)[:-2])
    parts = [
        edit.view(part, (prod(outer), heads, *shape_of(part)[-2:]))
        for part in (q, operand(node, "key"), operand(node, "value"))
    ]
    mask = argument(node, "attn_mask")
    if is_tensor(mask):
        mask = _flat_mask(edit, mask, shape_of(q)[:-2])
    attention = edit.call(
        aten.scaled_dot_product_attention.default,
        *parts,
        mask,
        argument(node, "dropout_p"),
        argument(node, "is_causal"),
        scale=argument(node, "scale"),
    )
    return edit.view(attention, shape_of(node))


def _split(outside: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Splits the axes in front of (N, D) into those that are joined, and the heads."""
    return (outside[:-1], outside[-1]) if len(outside) > 1 else (outside, 1)


def _flat_mask(edit: Editor, mask: Node, outside: tuple[int, ...]) -> Node:
    """Returns a mask that spreads over (…, H, Nq, N) as one that spreads over four axes."""
    given = shape_of(mask)
    if len(given) <= 2:
        return mask
    given = (*(1,) * (len(outside) + 2 - len(given)), *given)
    mask = edit.view(mask, given)
    outer, _ = _split(outside)
    heads = given[len(outer)] if len(outside) > 1 else 1
    if prod(given[: len(outer)]) == 1:
        return edit.view(mask, (1, heads, *given[-2:]))
    mask = edit.expand(mask, (*outer, *given[len(outer) :]))
    return edit.view(mask, (prod(outer), heads, *given[-2:]))
