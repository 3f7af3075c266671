"""Recognises softmax attention and makes it one ``sized_attention``.

Before → after::

    softmax(q · kᵀ · scale + bias, -1) · v         →  sized_attention(q, k, v, bias, scale)
    scaled_dot_product_attention(q, k, v, bias)    →  sized_attention(q, k, v, bias, 1/√D)

where ``bias`` is absent or differs only by image and key, (B, N) spread over heads and queries:
the log of the token sizes in ToMe's proportional attention. Several biases are added up, keys
filled with -∞ are a bias, and a maximum taken off the logits changes nothing. Queries, keys and
values of three axes, as without heads or with images and heads in one, and those spread over each
other, as queries shared by all images, are laid out as four. Other biases, and probabilities or
logits that something else reads too, stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    axis,
    dtype_of,
    is_call,
    operand,
    operator_name,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.match.attention_logits import Bias, read_logits, unscaled
from tokexport.graph_passes.torch_passes.match.broadcast import collapse, varying_axes

_SOFTMAXES = (aten.softmax.int, aten._softmax.default)


@dataclass(frozen=True)
class Attention:
    """The parts of an attention, of two to four axes each.

    Attributes:
        q: The queries (…, Nq, D).
        k: The keys (…, N, D), or (…, D, N) where ``k_turned``.
        v: The values (…, N, Dv).
        biases: What is added to the logits.
        scale: The factor of the products.
        k_turned: Whether k is already transposed.
        groups: How many heads of q share one of k and v.
        v_shape: The shape that v is read in, where its images and heads are in one axis and those
            of q and k are not.
    """

    q: Node
    k: Node
    v: Node
    biases: tuple[Bias, ...]
    scale: float
    k_turned: bool = False
    groups: int = 1
    v_shape: tuple[int, ...] | None = None

    @property
    def values(self) -> tuple[int, ...]:
        """The shape of v as (…, N, Dv)."""
        return self.v_shape or shape_of(self.v)

    @property
    def keys(self) -> tuple[int, ...]:
        """The shape of k as (…, N, D)."""
        shape = shape_of(self.k)
        return (*shape[:-2], *shape[:-3:-1]) if self.k_turned else shape

    @property
    def batch(self) -> tuple[int, ...]:
        """The axes that q, k and v have in common, spread over each other."""
        if self.groups > 1:
            return shape_of(self.q)[:-2]
        parts = (shape_of(self.q), self.keys, self.values)
        return tuple(torch.broadcast_shapes(*(shape[:-2] for shape in parts)))


class RecogniseAttention(TorchPass):
    """Finds attention whose probabilities nothing else reads."""

    name: ClassVar[str] = "recognise attention"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many attentions there are."""
        changed = 0
        for node in list(edit.graph.nodes):
            found = read_attention(node)
            if isinstance(found, Attention):
                with edit.before(node):
                    edit.replace(node, _insert(edit, found, node))
                changed += 1
            elif found is not None:
                edit.leave(node, found)
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
    for option in ("dropout_p", "is_causal"):
        if argument(node, option):
            return f"it is called with {option}={argument(node, option)}"
    scale, mask = argument(node, "scale"), argument(node, "attn_mask")
    if scale is None:
        scale = 1.0 / math.sqrt(shape_of(q)[-1])
    groups = 1
    if argument(node, "enable_gqa"):
        groups = shape_of(q)[-3] // shape_of(k)[-3]
    biases = () if mask is None else (Bias(mask),)
    return Attention(q, k, v, biases, float(scale), groups=groups)


def _from_products(node: Node) -> Attention | str:
    weights, v = operand(node), operand(node, "other")
    logits = operand(weights)
    if len(weights.users) != 1:
        return f"its probabilities are read by {_other_readers(weights, node)} too"
    if axis(weights) != len(shape_of(weights)) - 1:
        return f"its softmax runs over axis {axis(weights)} of {shape_of(weights)}, not the keys"
    if dtype_of(logits) != dtype_of(weights):
        return f"its softmax turns {dtype_of(logits)} into {dtype_of(weights)}"
    read = read_logits(logits, weights)
    if isinstance(read, str):
        return read
    q, inner = unscaled(operand(read.product))
    k, turned = _untransposed(operand(read.product, "other"))
    found, flat = shape_of(read.product), shape_of(v)
    v_shape = None
    if found != shape_of(logits):
        if len(flat) != 3 or shape_of(logits) != (flat[0], *found[-2:]):
            return f"its q · kᵀ {found} has other axes than its values {flat}"
        v_shape = (*found[:-2], *flat[1:])
    return Attention(q, k, v, read.biases, read.scale * inner, turned, v_shape=v_shape)


def _other_readers(node: Node, known: Node) -> str:
    return ", ".join(sorted({operator_name(user) for user in node.users if user is not known}))


def _misfit(found: Attention) -> str:
    """Returns which shape or dtype does not fit the operator, or why the bias is none of keys."""
    q, k, v = shape_of(found.q), found.keys, found.values
    if not all(2 <= len(shape) <= 4 for shape in (q, k, v)) or not 1 <= len(found.batch) <= 2:
        return f"its q {q}, k {k} and v {v} are not (B, H, N, D)"
    kinds = {dtype_of(part) for part in (found.q, found.k, found.v)}
    if len(kinds) != 1 or not kinds.pop().is_floating_point:
        return "its q, k and v are not of one floating-point type"
    for bias in found.biases:
        if why := _misfit_of_bias(found, bias.node):
            return why
    return ""


def _misfit_of_bias(found: Attention, node: Node) -> str:
    if dtype_of(node) not in (dtype_of(found.q), torch.bool):
        return f"its bias is {dtype_of(node)} and not {dtype_of(found.q)}"
    rank, bias = len(found.batch) + 2, shape_of(node)
    if len(bias) > rank or (bias and bias[-1] not in (1, found.keys[-2])):
        return f"its bias {bias} is not (B, 1, 1, N)"
    varies = {a + rank - len(bias) for a in varying_axes(node)}
    places = {rank - 2: "queries"} | ({1: "heads"} if rank == 4 else {})
    across = [name for place, name in sorted(places.items()) if place in varies]
    return f"its bias differs by {' and '.join(across)}" if across else ""


def _insert(edit: Editor, found: Attention, node: Node) -> Node:
    """Inserts the operator on q, k, v of four axes, and gives its result the shape it had."""
    k = found.k
    if found.k_turned:
        rank = len(shape_of(k))
        k = edit.call(aten.transpose.int, k, rank - 2, rank - 1)
    parts = [found.q, k, edit.view(found.v, found.values)]
    if found.groups > 1:
        parts[1:] = [_repeated(edit, part, found.groups) for part in parts[1:]]
    heads = found.batch if len(found.batch) == 2 else (found.batch[0], 1)
    q, k, v = (
        edit.view(
            edit.expand(part, (*found.batch, *shape_of(part)[-2:])), (*heads, *shape_of(part)[-2:])
        )
        for part in parts
    )
    log_size = _log_size(edit, found, heads[0])
    attention = torch.ops.tokexport.sized_attention.default
    return edit.view(edit.call(attention, q, k, v, log_size, found.scale), shape_of(node))


def _repeated(edit: Editor, part: Node, groups: int) -> Node:
    """Repeats each head of (B, H, N, D) for the queries' heads that share it."""
    *batch, heads, rows, width = shape_of(part)
    wide = edit.call(aten.unsqueeze.default, part, -3)
    wide = edit.expand(wide, (*batch, heads, groups, rows, width))
    return edit.view(wide, (*batch, heads * groups, rows, width))


def _log_size(edit: Editor, found: Attention, images: int) -> Node | None:
    """Inserts the sum of the biases as (B, N)."""
    total = None
    rank = len(found.batch) + 2
    for bias in found.biases:
        shape = shape_of(bias.node)
        lifted = edit.view(bias.node, (*[1] * (rank - len(shape)), *shape))
        keys = edit.expand(collapse(edit, lifted, (0, rank - 1)), (images, found.keys[-2]))
        term = bias.as_numbers(edit, keys, dtype_of(found.q))
        total = term if total is None else edit.call(aten.add.Tensor, total, term)
    return total


def _untransposed(node: Node) -> tuple[Node, bool]:
    """Returns k for kᵀ, or kᵀ itself with a flag that it is transposed."""
    rank = len(shape_of(node))
    if is_call(node, aten.transpose.int):
        if {axis(node, "dim0"), axis(node, "dim1")} == {rank - 2, rank - 1}:
            return operand(node), False
    elif is_call(node, aten.permute.default):
        order = [a % rank for a in argument(node, "dims")]
        if order == [*range(rank - 2), rank - 1, rank - 2]:
            return operand(node), False
    return node, True
