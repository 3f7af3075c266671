"""Takes the graph of one ViT block apart: heads, residual, MLP.

Before → after::

    block(x, …)   →   q, k, v = heads(x, …)
                      o       = softmax(q kᵀ scale) v        # left out: the reduction's own
                      x       = residual(x, o)
                      x       = mlp(x)

A block of timm, torchvision, transformers or open_clip is about twenty nodes with one attention.
The attention is found first, then the first value after it from which everything later is computed:
the residual sum. LayerScale, SwiGLU, norms of queries and keys, and norms behind the sum are all
part of one of the pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.surgery.find_attention import FoundAttention, find_attention
from tokexport.graph_passes.reduction.surgery.subgraph import Subgraph, cut_subgraph


@dataclass(frozen=True)
class BlockParts:
    """The pieces of a kind of block.

    Attributes:
        heads: x (B, N, C) and the block's other tensors → q, k (B, H, N, D) and v (B, H, N, Dv).
        residual: x (B, N, C) and the heads' results o (B, H, N, Dv) → (B, N, C).
        mlp: (B, N, C) → (B, N, C).
        scale: What q kᵀ is multiplied by.
        width: C.
    """

    heads: Subgraph
    residual: Subgraph
    mlp: Subgraph
    scale: float
    width: int


def take_apart(program: ExportedProgram, output: int) -> BlockParts:
    """Cuts a traced block into its pieces.

    Args:
        program: The block as a function of its tensors, the tokens first; their batch and number
            are symbols.
        output: Which of its outputs holds the tokens.

    Raises:
        SurgeryError: The block has another structure; the message says which.
    """
    graph = program.graph
    given = {
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind.name == "USER_INPUT"
    }
    placeholders = [node for node in graph.nodes if node.op == "placeholder" and node.name in given]
    x, *extras = placeholders
    results = graph.output_node().args[0]
    assert isinstance(results, Sequence)
    end = results[output]
    assert isinstance(end, Node)
    _require_free_sizes(x)
    attention = find_attention(graph, x)
    middle = _residual_sum(x, extras, attention, end)
    return BlockParts(
        heads=cut_subgraph(
            program, [x, *extras], [attention.q, attention.k, attention.v], "the attention"
        ),
        residual=cut_subgraph(program, [x, attention.result], [middle], "the residual sum"),
        mlp=cut_subgraph(program, [middle], [end], "the MLP"),
        scale=attention.scale,
        width=int(x.meta["val"].shape[2]),
    )


def _require_free_sizes(x: Node) -> None:
    batch, tokens, _ = x.meta["val"].shape
    for name, size in (("batch", batch), ("number of tokens", tokens)):
        if not isinstance(size, torch.SymInt):
            raise SurgeryError(
                f"The block works for one {name} only, {size}: it holds something of that size, "
                "such as a relative position bias or windows.",
                fix="Reduce a model whose attention takes any number of tokens: no windows, no "
                "bias between positions.",
            )


def _residual_sum(x: Node, extras: Iterable[Node], attention: FoundAttention, end: Node) -> Node:
    """Returns the first value after the attention through which all paths to the end lead."""
    shape = end.meta["val"].shape
    behind = _reached([attention.result], without=None)
    node: Node
    for node in attention.result.graph.nodes:
        value = node.meta.get("val")
        if node not in behind or not isinstance(value, torch.Tensor) or value.shape != shape:
            continue
        if node is end or end not in _reached([x, *extras, attention.result], without=node):
            return node
    raise SurgeryError("The block's output does not come from its attention.")


def _reached(starts: Iterable[Node], without: Node | None) -> set[Node]:
    """Returns what is computed from some values, sizes alone not counted."""
    found: set[Node] = set()
    ahead = [user for node in starts for user in node.users]
    while ahead:
        node = ahead.pop()
        if node in found or node is without or not _is_tensors(node):
            continue
        found.add(node)
        ahead.extend(node.users)
    return found


def _is_tensors(node: Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, torch.SymInt | int | float | bool)
