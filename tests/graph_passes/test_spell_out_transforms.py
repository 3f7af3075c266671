"""A Fourier transform that is read as real numbers is products with cosines and sines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor

from tokexport.graph_passes.torch_passes.spell_out_transforms import SpellOutTransforms

PASSES = (SpellOutTransforms(),)

TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "both parts": lambda x: torch.view_as_real(torch.fft.fft(x, dim=1)),
    "the last axis": lambda x: torch.fft.fft(x).imag,
    "two axes": lambda x: torch.view_as_real(torch.fft.fft2(x)),
    "two axes, absolute": lambda x: torch.fft.fft2(x, norm="ortho").abs(),
    "all axes": lambda x: torch.fft.fftn(x, norm="forward").real,
    "half of one": lambda x: torch.view_as_real(torch.fft.rfft(x, dim=1)),
    "half of two": lambda x: torch.view_as_real(torch.fft.rfft2(x, dim=(2, 1))),
    "of several readers": lambda x: (lambda y: y.real * y.imag + y.abs())(torch.fft.fft2(x)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_it_is_spelled_out(name: str) -> None:
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    rewritten = checked(TRANSFORMS[name], x, passes=PASSES, targets=TARGETS, tolerance=2e-6)
    assert rewritten.changes == {"spell out transforms": 1}
    assert not any("fft" in call for call in calls(rewritten))


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "of complex numbers": lambda x: torch.fft.fft(torch.complex(x, x)).real,
    "padded": lambda x: torch.fft.fft(x, n=9).real,
    "cut": lambda x: torch.fft.fft2(x, s=(3, 4)).real,
    "there and back": lambda x: torch.fft.ifft(torch.fft.fft(x) ** 2).real,
    "inverse": lambda x: torch.fft.irfft(torch.complex(x, x)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_stays(name: str) -> None:
    rewritten = checked(OTHERS[name], torch.randn(2, 5, 6), passes=PASSES, tolerance=2e-6)
    assert rewritten.changes == {"spell out transforms": 0}
    assert any("fft" in call for call in calls(rewritten))
