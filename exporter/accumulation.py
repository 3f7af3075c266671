"""Says how far summing in another order may move what a product or a sum gives.

The result of n terms p is off by more than its own rounding, most where they cancel. Adding them
one by one, with an error of u each, is off by about u √(n / 2) √(Σ p²) (Higham and Mary, "A New
Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41, 2019). Kernels keep
``LANES`` sums at a time, so that n becomes n / LANES.

Eager adds in one order, and an artifact in another. Where one sum stands for a whole channel, as
for a constant image, it is luck how near eager comes to float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tokexport.graph_passes.torch_passes.calls import base_name
from tokexport.runtimes.neighbourhoods import epsilon

#: How many partial sums a kernel keeps: those of one vector of AVX-512.
LANES: Final = 16


def _of_product(tensors: Sequence[Tensor], result: Tensor) -> float:
    return tensors[0].shape[-1]


def _of_added_product(tensors: Sequence[Tensor], result: Tensor) -> float:
    return tensors[1].shape[-1]


def _of_convolution(tensors: Sequence[Tensor], result: Tensor) -> float:
    return math.prod(tensors[1].shape[1:])


def _of_sum(tensors: Sequence[Tensor], result: Tensor) -> float:
    return tensors[0].numel() / max(result.numel(), 1)


def _of_weighted_mean(tensors: Sequence[Tensor], result: Tensor) -> float:
    # Of weights that sum to 1 the squares sum to 1 / n, where they are alike; so n cancels.
    return 1.0


#: How many terms a value of each operator sums, from the tensors it takes and gives.
_TERMS: Final[dict[str, Callable[[Sequence[Tensor], Tensor], float]]] = {
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "mv", "dot", "inner"), _of_product),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), _of_added_product),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _of_convolution),
    "sum": _of_sum,
    **dict.fromkeys(("mean", "scaled_dot_product_attention"), _of_weighted_mean),
}


def reordered(
    target: Any, args: Any, kwargs: Any, exact: Tensor, moved: Tensor, random: torch.Generator
) -> Tensor:
    """Moves what an operator gave by as much as the order of its terms does, by chance.

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
    """Returns √(n / (2 LANES)) √(Σ p²) for every value that an operator gave.

    Args:
        target: The operator.
        args: What it took.
        kwargs: What it took by name.
        result: What it gave, floating.

    Returns:
        Numbers of the result's shape, in float32; None where the operator sums nothing.
    """
    name = base_name(target)
    terms = _TERMS.get(name)
    if terms is None or not result.numel():
        return None
    tensors = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    if not all(one.is_floating_point() for one in tensors[:2]):
        return None
    if name == "scaled_dot_product_attention":
        query, key, value, *rest = args
        squares = target(query, key, value.square(), *rest, **kwargs).float()
    else:
        squares = target(*pytree.tree_map(_squared, args), **pytree.tree_map(_squared, kwargs))
    size = squares.sqrt_().mul_(math.sqrt(terms(tensors, result) / (2 * LANES)))
    return torch.nan_to_num(size, nan=0.0, posinf=0.0)


def _squared(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.float().square()
