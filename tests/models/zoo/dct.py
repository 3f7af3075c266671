"""Token reduction in the frequency domain: the first coefficients of a DCT along the tokens stay.

The class token is set apart. Orthonormal DCT-II over T tokens, K = ⌈T · ratio⌉ coefficients, the
inverse at length K: all in all one constant matrix (K, T). Written once with cosine matrices made
in forward, and once with the transforms of torch.fft.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from models.zoo.vit import Block, Vit, images, patch, seeded
from torch import Tensor, nn


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II as a matrix (n, n)."""
    position = torch.arange(n).unsqueeze(0)
    frequency = torch.arange(n).unsqueeze(1)
    matrix = torch.cos(math.pi / n * (position + 0.5) * frequency) * math.sqrt(2 / n)
    matrix[0] = matrix[0] / math.sqrt(2)
    return matrix


def reduce_by_matrix(x: Tensor, keep: int) -> Tensor:
    """Takes (B, T, C), returns (B, keep, C)."""
    coefficients = torch.matmul(cosines(x.shape[1]), x)[:, :keep]
    return torch.matmul(cosines(keep).t(), coefficients)


def dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II along the last axis, through a Fourier transform of the same length."""
    n = x.shape[-1]
    shape = x.shape
    x = x.contiguous().view(-1, n)
    v = torch.cat([x[:, ::2], x[:, 1::2].flip([1])], dim=1)
    spectrum = torch.view_as_real(torch.fft.fft(v, dim=1))
    k = -torch.arange(n, dtype=x.dtype)[None, :] * math.pi / (2 * n)
    V = spectrum[..., 0] * torch.cos(k) - spectrum[..., 1] * torch.sin(k)
    V = torch.cat([V[:, :1] / (2 * math.sqrt(n)), V[:, 1:] / (2 * math.sqrt(n / 2))], dim=1)
    return 2 * V.view(*shape)


def idct(X: Tensor) -> Tensor:
    """Orthonormal inverse of ``dct``."""
    n = X.shape[-1]
    shape = X.shape
    X = X.contiguous().view(-1, n) / 2
    X = torch.cat([X[:, :1] * (2 * math.sqrt(n)), X[:, 1:] * (2 * math.sqrt(n / 2))], dim=1)
    k = torch.arange(n, dtype=X.dtype)[None, :] * math.pi / (2 * n)
    cos, sin = torch.cos(k), torch.sin(k)
    imaginary = torch.cat([X[:, :1] * 0, -X.flip([1])[:, :-1]], dim=1)
    real = X * cos - imaginary * sin
    imaginary = X * sin + imaginary * cos
    V = torch.complex(real, imaginary)
    v: Tensor = torch.fft.irfft(V, n=n, dim=1)
    x = v.new_zeros(v.shape)
    x[:, ::2] = v[:, : n - n // 2]
    x[:, 1::2] = v.flip([1])[:, : n // 2]
    return x.view(*shape)


def reduce_by_fft(x: Tensor, keep: int) -> Tensor:
    """Takes (B, T, C), returns (B, keep, C)."""
    return idct(dct(x.transpose(1, 2))[..., :keep]).transpose(1, 2)


class SpectralBlock(Block):
    """Reduces behind the MLP."""

    layer: int
    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        ratio = self._info["ratios"][self.layer]
        if ratio == 1.0:
            return x
        cls, x = x[:, :1], x[:, 1:]
        keep = math.ceil(x.shape[1] * ratio)
        return torch.cat([cls, self._info["reduce"](x, keep)], dim=1)


def _built(seed: int, reduce: Any) -> tuple[Vit, Tensor]:
    model = seeded(seed)
    patch(model, {"ratios": [1.0, 0.8, 1.0, 0.8], "reduce": reduce}, SpectralBlock)
    return model, images()


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """With cosine matrices made in forward."""
    return _built(seed, reduce_by_matrix)


def build_by_fft(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Through torch.fft."""
    return _built(seed, reduce_by_fft)
