"""Estimates how far another order of summation may move the result of a product or a sum.

Adding n terms p one by one, each addition is off by a part of the sum so far. Where the terms are
of both signs, the sums grow like a random walk, and their squares come to n / 2 Σ p²; where they
share a sign, like a line, and they come to n / 3 (Σ p)² (Higham and Mary, "A New Approach to
Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41, 2019). Terms that share a part do
both. Kernels that keep ``LANES`` sums at a time do the first for n / LANES terms, and the second
for n / LANES².

Products keep one sum for each value: their lanes are other values. PyTorch, ONNX Runtime and
OpenVINO came to 0.42 of this in half last bits for both signs and to 0.45 for one, for products,
convolutions and sums over rows of 48 to 3072 terms; ``PART`` is what draws as much.

Eager adds in one order, and an artifact in another. Where one sum gives a whole channel, as for a
constant image, the distance of eager from float64 is a matter of chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tokexport.graph_passes.torch_passes.graph.calls import base_name
from tokexport.runtimes.tolerances.neighbourhoods import epsilon

#: How many partial sums a sum over neighbours in memory keeps: those of one vector of AVX-512.
LANES: Final = 16
#: The variance of one addition's error, as a part of that of half a last bit drawn up or down by
#: chance: 1 where a power of two begins, 1 / 4 where it ends.
PART: Final = 2 / 3


@dataclass(frozen=True)
class _Terms:
    """The terms that a value sums.

    Attributes:
        count: How many terms.
        lanes: How many partial sums a kernel keeps.
        parts: The divisor of the terms whose squares are summed: the count of a mean.
    """

    count: float
    lanes: int = 1
    parts: float = 1.0


def _of_product(tensors: Sequence[Tensor], args: Sequence[Any], result: Tensor) -> _Terms:
    return _Terms(tensors[0].shape[-1])


def _of_added_product(tensors: Sequence[Tensor], args: Sequence[Any], result: Tensor) -> _Terms:
    return _Terms(tensors[1].shape[-1])


def _of_convolution(tensors: Sequence[Tensor], args: Sequence[Any], result: Tensor) -> _Terms:
    return _Terms(math.prod(tensors[1].shape[1:]))


def _of_sum(tensors: Sequence[Tensor], args: Sequence[Any], result: Tensor) -> _Terms:
    (summed, *_) = tensors
    axes = args[1] if len(args) > 1 and args[1] else range(summed.dim())
    axes = axes if isinstance(axes, Sequence) else (axes,)
    along_memory = any(axis % max(summed.dim(), 1) == summed.dim() - 1 for axis in axes)
    return _Terms(summed.numel() / max(result.numel(), 1), LANES if along_memory else 1)


def _of_mean(tensors: Sequence[Tensor], args: Sequence[Any], result: Tensor) -> _Terms:
    summed = _of_sum(tensors, args, result)
    return _Terms(summed.count, summed.lanes, summed.count)


def _of_attention(tensors: Sequence[Tensor], args: Sequence[Any], result: Tensor) -> _Terms:
    # Of weights that sum to 1 the squares sum to 1 / n, where they are alike.
    keys = tensors[1].shape[-2]
    return _Terms(keys, 1, keys)


#: Returns the terms of each operator, from its tensors, its arguments and its result.
_TERMS: Final[dict[str, Callable[[Sequence[Tensor], Sequence[Any], Tensor], _Terms]]] = {
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "mv", "dot", "inner"), _of_product),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), _of_added_product),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _of_convolution),
    "sum": _of_sum,
    "mean": _of_mean,
    "scaled_dot_product_attention": _of_attention,
}


def reordered(
    target: Any, args: Any, kwargs: Any, exact: Tensor, moved: Tensor, random: torch.Generator
) -> Tensor:
    """Moves the result of an operator, by chance, as far as the order of its terms could.

    Args:
        target: The operator.
        args: What it took.
        kwargs: What it took by name.
        exact: What it gave; whole numbers are counts, which come out exactly.
        moved: The same, rounded already.
        random: Draws the errors.

    Returns:
        Numbers of the type of ``moved``; ``moved`` itself where the operator sums nothing. What is
        in a half type is added in float32.
    """
    far = accumulation(target, args, kwargs, exact) if exact.is_floating_point() else None
    if far is None:
        return moved
    chance = torch.empty_like(far).uniform_(-1, 1, generator=random)
    chance = chance.mul_(far).mul_(epsilon("float32"))
    return torch.where(exact == exact.round(), moved, moved + chance.to(moved.dtype))


def accumulation(target: Any, args: Any, kwargs: Any, result: Tensor) -> Tensor | None:
    """Returns how far the order of its terms may move each value that an operator gave.

    Args:
        target: The operator.
        args: What it took.
        kwargs: What it took by name.
        result: What it gave, floating.

    Returns:
        Numbers of the result's shape, in float32; None where the operator sums nothing.
    """
    name = base_name(target)
    terms_of = _TERMS.get(name)
    if terms_of is None or not result.numel():
        return None
    tensors = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    if not all(one.is_floating_point() for one in tensors[:2]):
        return None
    terms = terms_of(tensors, args, result)
    if name == "scaled_dot_product_attention":
        query, key, value, *rest = args
        squares = target(query, key, value.square(), *rest, **kwargs).float()
    else:
        squares = target(*pytree.tree_map(_squared, args), **pytree.tree_map(_squared, kwargs))
    squares = squares.div_(terms.parts)
    shared = result.float().square().sub_(squares).clamp_(0)
    walk = squares.mul_(terms.count / (2 * terms.lanes))
    line = shared.mul_(terms.count / (3 * terms.lanes**2))
    return torch.nan_to_num(walk.add_(line).mul_(PART).sqrt_(), nan=0.0, posinf=0.0)


def _squared(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.float().square()
