"""Finds the one attention of a block's graph, fused or written by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from torch.fx import Graph, Node

from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.stack_traces import source_line
from tokexport.graph_passes.torch_passes.graph.editor import aten

_FUSED: Final = aten.scaled_dot_product_attention.default
_SOFTMAX: Final = (aten.softmax.int, aten._softmax.default)
_PRODUCTS: Final = (aten.matmul.default, aten.bmm.default)
#: Calls that change no value in evaluation mode.
_PASSED: Final = (
    aten.dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.to.dtype,
    aten._to_copy.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
)


@dataclass(frozen=True)
class FoundAttention:
    """The attention softmax(q kᵀ scale) v of a block.

    Attributes:
        q: (B, H, N, D).
        k: (B, H, N, D).
        v: (B, H, N, Dv).
        result: (B, H, N, Dv).
        scale: A number.
    """

    q: Node
    k: Node
    v: Node
    result: Node
    scale: float


def find_attention(graph: Graph, x: Node) -> FoundAttention:
    """Returns the attention of a block.

    Raises:
        SurgeryError: The block has none, several, or one with a mask or a bias.
    """
    fused = [node for node in graph.nodes if node.target is _FUSED]
    by_hand = [] if fused else [node for node in graph.nodes if node.target in _SOFTMAX]
    if len(fused) + len(by_hand) != 1:
        count = len(fused) + len(by_hand)
        raise SurgeryError(
            f"The block holds {count or 'no'} attention{'s' if count else ''}, and one is wanted.",
            fix="Name other blocks with blocks=PATH, the container of a plain ViT's blocks.",
        )
    found = _fused(fused[0]) if fused else _by_hand(graph, by_hand[0])
    batch, tokens, _ = x.meta["val"].shape
    for part in (found.q, found.k, found.v):
        shape = part.meta["val"].shape
        if len(shape) != 4 or shape[0] != batch or shape[2] != tokens:
            raise SurgeryError(
                f"The attention works on {tuple(shape)} and not on (batch, heads, tokens, channels)"
                " of all tokens, as one in windows does.",
                where=source_line(part),
                fix="Reduce a model whose attention sees all tokens at once.",
            )
    if found.q.meta["val"].shape[1] != found.k.meta["val"].shape[1]:
        raise SurgeryError(
            "The attention has fewer heads for keys than for queries.",
            where=source_line(found.result),
            fix="Reduce a model whose queries, keys and values have as many heads.",
        )
    return found


def _fused(node: Node) -> FoundAttention:
    q, k, v, *rest = node.args
    names = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given: dict[str, Any] = {**dict(zip(names, rest, strict=False)), **node.kwargs}
    assert isinstance(q, Node)
    assert isinstance(k, Node)
    assert isinstance(v, Node)
    if given.get("is_causal"):
        raise SurgeryError(
            "The attention is causal: a token sees only those before it, and merging mixes them.",
            where=source_line(node),
            fix="Name the blocks of a vision encoder with blocks=PATH.",
        )
    if given.get("attn_mask") is not None:
        raise _biased(node)
    scale = given.get("scale")
    return FoundAttention(
        q, k, v, node, int(q.meta["val"].shape[-1]) ** -0.5 if scale is None else scale
    )


def _biased(node: Node) -> SurgeryError:
    return SurgeryError(
        "The attention adds a bias or a mask between pairs of tokens, such as relative positions, "
        "and merged tokens have no single position for it.",
        where=source_line(node),
        fix="Reduce a model with absolute or rotary positions.",
    )


def _by_hand(graph: Graph, softmax: Node) -> FoundAttention:
    """Reads matmul, scale, softmax, matmul."""
    result = softmax
    while result is softmax or result.target in _PASSED:
        readers = [user for user in result.users if user.users or user.op == "output"]
        if len(readers) != 1:
            raise _unread(softmax, "its probabilities are read by more than the values' product")
        (result,) = readers
    if result.target not in _PRODUCTS:
        raise _unread(softmax, f"{result.target} follows its softmax")
    v = result.args[1]
    logits, scale = softmax.args[0], 1.0
    while isinstance(logits, Node) and logits.target not in _PRODUCTS:
        if logits.target in (aten.mul.Tensor, aten.div.Tensor) and _is_number(logits.args[1]):
            number = float(logits.args[1])  # type: ignore[arg-type]
            scale *= number if logits.target is aten.mul.Tensor else 1 / number
        elif logits.target in (aten.add.Tensor, aten.masked_fill.Scalar, aten.where.self):
            raise _biased(logits)
        elif logits.target not in _PASSED:
            raise _unread(softmax, f"{logits.target} is before its softmax")
        logits = logits.args[0]
    if not isinstance(logits, Node) or not isinstance(v, Node):
        raise _unread(softmax, "it is no product of queries and keys")
    q, turned = logits.args[:2]
    assert isinstance(q, Node)
    assert isinstance(turned, Node)
    with graph.inserting_after(turned):
        k = graph.call_function(aten.transpose.int, (turned, -2, -1))
    k.meta["val"] = turned.meta["val"].transpose(-2, -1)
    return FoundAttention(q, k, v, result, scale)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unread(node: Node, why: str) -> SurgeryError:
    return SurgeryError(
        f"The block's attention is not recognised: {why}.",
        where=source_line(node),
        fix="Let the model use torch's scaled_dot_product_attention: attn_implementation='sdpa' in "
        "transformers, set_fused_attn() in timm.",
    )
