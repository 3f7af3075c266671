"""Measures what rounding does to complex values and Fourier transforms.

Along an axis a transform sums n terms f x with |f| = s, so a product in its place is off by about
√(PART n / 2) s √(Σ |x|²) last bits, as ``accumulation`` says of others; several axes are as many
products. By Parseval's theorem s² Σ |x|² is the mean of |y|² over the axes that are transformed,
whatever the norm.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.fx import Node

from tokexport.exporter.rounding.accumulation import PART
from tokexport.graph_passes.torch_passes.canonicalize.fourier_products import steps
from tokexport.runtimes.tolerances.neighbourhoods import epsilon

#: What a graph in float64 computes in, where the code names a narrower type.
WIDEST: Final = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex32, torch.complex64), torch.complex128),
}


def complex_parts(value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the parts (…, 2) of complex numbers, and what they are off by as a part of (…, 1).

    That is the absolute value: what a product gives may cancel in one part.
    """
    return torch.view_as_real(value.resolve_conj()), value.abs().unsqueeze(-1)


def like(value: Tensor, parts: Tensor) -> Tensor:
    """Returns parts (…, 2) as complex numbers where a value is of them; else as they are."""
    return torch.view_as_complex(parts) if value.is_complex() else parts


def moved_transform(node: Node, exact: Tensor, moved: Tensor, random: torch.Generator) -> Tensor:
    """Moves what a Fourier transform gave by as much as the order of its terms does, by chance.

    Args:
        node: The call.
        exact: What it gave.
        moved: The same, rounded already.
        random: Draws the errors.

    Returns:
        Numbers of the type of ``moved``; ``moved`` itself where the call is no transform.
    """
    along = steps(node, exact.shape) if node.op == "call_function" else None
    if not along or not exact.numel():
        return moved
    axes = sorted({step.axis for step in along})
    count = sum(exact.shape[axis] for axis in axes)
    far = exact.abs().square().mean(axes, keepdim=True).sqrt()
    far = far * math.sqrt(PART * count / 2) * epsilon("float32")
    parts = torch.view_as_real(moved) if moved.is_complex() else moved.unsqueeze(-1)
    chance = torch.empty_like(parts).uniform_(-1, 1, generator=random) * far.unsqueeze(-1)
    parts = parts + chance
    return torch.view_as_complex(parts) if moved.is_complex() else parts.squeeze(-1)
