"""Reads the logits of an attention: a scaled product of queries and keys, and biases.

========================================================  =========================================
``(q · kᵀ · scale + b₁ + b₂).masked_fill(m, -∞)``          product, scale, biases b₁, b₂ and m
``where(m, q · kᵀ, -∞)``                                   product, bias not m
``x - amax(x, -1)``                                        the logits x: softmax does not see it
``(q · kᵀ).flatten(0, 1).unflatten(0, (B, H))``            the product: its axes part and join again
========================================================  =========================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    operand,
    operator_name,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten

_DIVISIONS = (aten.div.Tensor, aten.div.Scalar)
_FACTORS = (aten.mul.Tensor, aten.mul.Scalar, *_DIVISIONS)
_FILLS = (aten.full.default, aten.full_like.default, aten.scalar_tensor.default)


@dataclass(frozen=True)
class Bias:
    """A bias of the logits: numbers, or -∞ where a mask of truth values says so.

    Attributes:
        node: The numbers or the mask.
        hides: For a mask, the truth value under which a key is hidden.
    """

    node: Node
    hides: bool = False

    def as_numbers(self, edit: Editor, node: Node, dtype: torch.dtype) -> Node:
        """Inserts what makes ``node``, a layout of this bias, numbers to be added."""
        if dtype_of(node) != torch.bool:
            return node
        none, hidden = (
            edit.call(aten.full.default, [], number, dtype=dtype) for number in (0.0, -math.inf)
        )
        chosen = (hidden, none) if self.hides else (none, hidden)
        return edit.call(aten.where.self, node, *chosen)


@dataclass(frozen=True)
class Logits:
    """Logits taken apart.

    Attributes:
        product: The call of matmul that makes q · kᵀ.
        scale: The number that it is multiplied by.
        biases: What is added.
    """

    product: Node
    scale: float
    biases: tuple[Bias, ...]


def read_logits(logits: Node, reader: Node) -> Logits | str:
    """Takes logits apart, or returns why they cannot be.

    Args:
        logits: The logits.
        reader: The softmax; any other reader of them, or of an intermediate value, needs their own
            values.
    """
    biases: list[Bias] = []
    leads: dict[Node, bool] = {}
    node = logits
    while True:
        if others := _other_readers(node, reader):
            what = "logits are" if node is logits else f"{operator_name(node)} is"
            return f"its {what} read by {others} too"
        step = _step(node, leads)
        if step is None:
            break
        if step[1] is not None:
            if shape_of(node) != shape_of(logits):
                return f"something is added to its logits as {shape_of(node)}"
            biases.append(step[1])
        reader, node = node, step[0]
    product, scale = _product_below(node)
    if not is_call(product, aten.matmul.default):
        return f"its logits come from {operator_name(product)}, not from q · kᵀ"
    if len(product.users) != 1:
        return f"its q · kᵀ is read {len(product.users)} times, and not only for the softmax"
    if biases and shape_of(product) != shape_of(logits):
        return f"its q · kᵀ {shape_of(product)} has other axes than its logits {shape_of(logits)}"
    return Logits(product, scale, tuple(biases))


def unscaled(node: Node, read_once: bool = True) -> tuple[Node, float]:
    """Splits off a factor that is a number, x · c or x / c.

    Args:
        node: The value.
        read_once: Whether a product that several read stays whole.
    """
    if is_call(node, *_FACTORS) and not (read_once and len(node.users) > 1):
        x, factor = node.args[:2]
        if (
            isinstance(x, Node)
            and isinstance(factor, int | float)
            and dtype_of(x) == dtype_of(node)
        ):
            return x, 1.0 / factor if is_call(node, *_DIVISIONS) else float(factor)
    return node, 1.0


def _step(node: Node, leads: dict[Node, bool]) -> tuple[Node, Bias | None] | None:
    """Takes one step towards the product; ``leads`` is what is known of values, see ``_leads``."""
    if is_call(node, aten.add.Tensor) and argument(node, "alpha") == 1:
        return _off_a_sum(node, leads)
    if is_call(node, aten.masked_fill.Scalar) and argument(node, "value") == -math.inf:
        mask = operand(node, "mask")
        return (operand(node), Bias(mask, hides=True)) if _spreads(mask, node) else None
    if is_call(node, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf):
        return _off_a_choice(node, leads)
    if is_call(node, aten.sub.Tensor) and argument(node, "alpha") == 1:
        source, largest = node.args[:2]
        if isinstance(source, Node) and _is_largest_of(source, largest):
            return source, None
    return None


def _off_a_choice(node: Node, leads: dict[Node, bool]) -> tuple[Node, Bias] | None:
    mask, kept, other = node.args[:3]
    assert isinstance(mask, Node)
    if _is_minus_infinity(other) and isinstance(kept, Node) and _leads(kept, leads):
        return (kept, Bias(mask)) if _spreads(mask, kept) else None
    if _is_minus_infinity(kept) and isinstance(other, Node) and _leads(other, leads):
        return (other, Bias(mask, hides=True)) if _spreads(mask, other) else None
    return None


def _off_a_sum(node: Node, leads: dict[Node, bool]) -> tuple[Node, Bias] | None:
    near, far = node.args[:2]
    if not isinstance(near, Node) or not isinstance(far, Node):
        return None
    if _leads(far, leads) and not _leads(near, leads):
        near, far = far, near
    return (near, Bias(far)) if _leads(near, leads) and _spreads(far, near) else None


def _leads(node: Node, leads: dict[Node, bool]) -> bool:
    """Returns whether a value is a product of matrices, or made from one by these steps.

    Args:
        node: The value.
        leads: The results for other values, to which this one is added: paths may meet again.
    """
    way = [node]
    while way[-1] not in leads and (step := _step(way[-1], leads)) is not None:
        way.append(step[0])
    last = way[-1]
    found = leads.get(last, is_call(_product_below(last)[0], aten.matmul.default))
    leads |= dict.fromkeys(way, found)
    return found


def _product_below(node: Node) -> tuple[Node, float]:
    """Walks back through factors and a change of the axes in front; returns the product, if any."""
    found, scale = unscaled(node, read_once=False)
    while is_call(found, aten.reshape.default):
        source = operand(found)
        if shape_of(source)[-2:] != shape_of(found)[-2:] or len(source.users) != 1:
            break
        found, inner = unscaled(source)
        scale *= inner
    return found, scale


def _spreads(part: Node, whole: Node) -> bool:
    """Returns whether a bias is broadcast over the logits, and not they over it."""
    return tuple(torch.broadcast_shapes(shape_of(part), shape_of(whole))) == shape_of(whole)


def _is_minus_infinity(value: object) -> bool:
    if isinstance(value, Node) and is_call(value, *_FILLS):
        name = "s" if value.target is aten.scalar_tensor.default else "fill_value"
        value = argument(value, name)
    return value == -math.inf


def _is_largest_of(source: Node, largest: object) -> bool:
    """Returns whether a value is the maximum of each row of another."""
    if isinstance(largest, Node) and is_call(largest, aten.amax.default):
        last = [a % len(shape_of(source)) for a in argument(largest, "dim")]
        return operand(largest) is source and last == [len(shape_of(source)) - 1]
    return False


def _other_readers(node: Node, known: Node) -> str:
    """Names the other readers of a value, without its own maximum."""
    names = {
        operator_name(user)
        for user in node.users
        if user is not known and not (is_call(known, aten.sub.Tensor) and user is known.args[1])
    }
    return ", ".join(sorted(names))
