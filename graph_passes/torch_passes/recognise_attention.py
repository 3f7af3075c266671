"""Recognises softmax attention and makes it one ``sized_attention``.

Before → after::

    softmax(q · kᵀ · scale + bias, -1) · v         →  sized_attention(q, k, v, bias, scale)
    scaled_dot_product_attention(q, k, v, bias)    →  sized_attention(q, k, v, bias, 1/√D)

where ``bias`` is absent or differs only by image and key, (B, N) spread over heads and queries:
the log of the token sizes in ToMe's proportional attention. Other biases, and probabilities or
logits that something else reads too, stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.broadcast import collapse, varying_axes
from tokexport.graph_passes.torch_passes.calls import (
    argument,
    axis,
    dtype_of,
    is_call,
    operand,
    operator_name,
    shape_of,
)
from tokexport.graph_passes.torch_passes.editor import Editor, aten
from tokexport.graph_passes.torch_passes.infrastructure import TorchPass

_SOFTMAXES = (aten.softmax.int, aten._softmax.default)
_DIVISIONS = (aten.div.Tensor, aten.div.Scalar)
_FACTORS = (aten.mul.Tensor, aten.mul.Scalar, *_DIVISIONS)


@dataclass(frozen=True)
class Attention:
    """The parts of an attention.

    Attributes:
        q: The queries (B, H, Nq, D).
        k: The keys (B, H, N, D), or (B, H, D, N) where ``k_turned``.
        v: The values (B, H, N, Dv).
        bias: What is added to the logits; None for nothing.
        scale: The factor of the products.
        k_turned: Whether k is already transposed.
    """

    q: Node
    k: Node
    v: Node
    bias: Node | None
    scale: float
    k_turned: bool = False

    @property
    def keys(self) -> tuple[int, ...]:
        """The shape of k as (B, H, N, D)."""
        shape = shape_of(self.k)
        return (*shape[:-2], *shape[:-3:-1]) if self.k_turned else shape


class RecogniseAttention(TorchPass):
    """Finds attention whose probabilities nobody else reads."""

    name: ClassVar[str] = "recognise attention"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many attentions there are."""
        changed = 0
        for node in list(edit.graph.nodes):
            found = read_attention(node)
            if isinstance(found, Attention):
                with edit.before(node):
                    edit.replace(node, _insert(edit, found))
                changed += 1
        return changed


def read_attention(node: Node) -> Attention | str | None:
    """Returns the attention whose result a node is, or why it cannot be one operator.

    None stands for a node that is neither a fused attention nor a product of a softmax.
    """
    if is_call(node, aten.scaled_dot_product_attention.default):
        found = _from_fused(node)
    elif is_call(node, aten.matmul.default) and is_call(operand(node), *_SOFTMAXES):
        found = _from_products(node)
    else:
        return None
    return found if isinstance(found, str) else _misfit(found) or found


def _from_fused(node: Node) -> Attention | str:
    q, k, v = (operand(node, name) for name in ("query", "key", "value"))
    for option in ("dropout_p", "is_causal", "enable_gqa"):
        if argument(node, option):
            return f"it is called with {option}={argument(node, option)}"
    scale = argument(node, "scale")
    if scale is None:
        scale = 1.0 / math.sqrt(shape_of(q)[-1])
    return Attention(q, k, v, argument(node, "attn_mask"), float(scale))


def _from_products(node: Node) -> Attention | str:
    weights, v = operand(node), operand(node, "other")
    logits, bias = operand(weights), None
    if len(weights.users) != 1:
        return f"its probabilities are read by {_other_readers(weights, node)} too"
    if axis(weights) != len(shape_of(weights)) - 1:
        return f"its softmax runs over axis {axis(weights)} of {shape_of(weights)}, not the keys"
    if dtype_of(logits) != dtype_of(weights):
        return f"its softmax turns {dtype_of(logits)} into {dtype_of(weights)}"
    if len(logits.users) != 1:
        return f"its logits are read by {_other_readers(logits, weights)} too"
    if is_call(logits, aten.add.Tensor) and argument(logits, "alpha") == 1:
        first, second = logits.args[:2]
        if isinstance(first, Node) and isinstance(second, Node):
            logits, bias = (first, second) if _is_product(first) else (second, first)
    product, outer = _unscaled(logits)
    if not is_call(product, aten.matmul.default):
        return f"its logits come from {operator_name(product)}, not from q · kᵀ"
    if len(product.users) != 1:
        return f"its q · kᵀ is read {len(product.users)} times, and not only for the softmax"
    q, inner = _unscaled(operand(product))
    k, turned = _untransposed(operand(product, "other"))
    return Attention(q, k, v, bias, outer * inner, turned)


def _other_readers(node: Node, known: Node) -> str:
    return ", ".join(sorted({operator_name(user) for user in node.users if user is not known}))


def _misfit(found: Attention) -> str:
    """Says which shape or dtype is not the operator's, or how the bias is not one of keys."""
    q, k, v = shape_of(found.q), found.keys, shape_of(found.v)
    if not len(q) == len(k) == len(v) == 4 or not q[:2] == k[:2] == v[:2]:
        return f"its q {q}, k {k} and v {v} are not (B, H, N, D) of the same B and H"
    kinds = {dtype_of(part) for part in (found.q, found.k, found.v)}
    if len(kinds) != 1 or not kinds.pop().is_floating_point:
        return "its q, k and v are not of one floating-point type"
    if found.bias is None:
        return ""
    if dtype_of(found.bias) != dtype_of(found.q):
        return f"its bias is {dtype_of(found.bias)} and not {dtype_of(found.q)}"
    bias = shape_of(found.bias)
    if len(bias) != 4 or bias[3] != k[2] or bias[0] not in (1, q[0]):
        return f"its bias {bias} is not (B, 1, 1, N)"
    varies = varying_axes(found.bias)
    across = [name for axis_, name in ((1, "heads"), (2, "queries")) if axis_ in varies]
    return f"its bias differs by {' and '.join(across)}" if across else ""


def _insert(edit: Editor, found: Attention) -> Node:
    log_size = None
    if found.bias is not None:
        log_size = edit.expand(collapse(edit, found.bias, (0, 3)), (found.keys[0], found.keys[2]))
    k = edit.call(aten.transpose.int, found.k, 2, 3) if found.k_turned else found.k
    attention = torch.ops.tokexport.sized_attention.default
    return edit.call(attention, found.q, k, found.v, log_size, found.scale)


def _is_product(node: Node) -> bool:
    """Tells whether a value is a product of matrices, scaled or not."""
    return is_call(_unscaled(node)[0], aten.matmul.default)


def _unscaled(node: Node) -> tuple[Node, float]:
    """Splits off a factor that is a number: x · c or x / c."""
    if is_call(node, *_FACTORS) and len(node.users) == 1:
        x, factor = node.args[:2]
        if (
            isinstance(x, Node)
            and isinstance(factor, int | float)
            and dtype_of(x) == dtype_of(node)
        ):
            return x, 1.0 / factor if is_call(node, *_DIVISIONS) else float(factor)
    return node, 1.0


def _untransposed(node: Node) -> tuple[Node, bool]:
    """Returns k for kᵀ, or kᵀ itself and that it is turned."""
    rank = len(shape_of(node))
    if is_call(node, aten.transpose.int):
        if {axis(node, "dim0"), axis(node, "dim1")} == {rank - 2, rank - 1}:
            return operand(node), False
    elif is_call(node, aten.permute.default):
        order = [a % rank for a in argument(node, "dims")]
        if order == [*range(rank - 2), rank - 1, rank - 2]:
            return operand(node), False
    return node, True
