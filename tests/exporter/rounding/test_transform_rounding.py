"""What rounding does to transforms covers what products with constants do, and little more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import trace
from torch import Tensor, fft

from tokexport.exporter.rounding.measure import _Rounded, _rounding_of, in_float64

TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "both ways": lambda x: fft.irfft2(fft.rfft2(x, dim=(1, 2)) * (1 + 2j), s=(14, 14), dim=(1, 2)),
    "a spectrum": lambda x: torch.view_as_real(fft.fft2(x, norm="ortho")),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_rounding_moves_a_transform_as_far_as_float32_is_off(name: str) -> None:
    x = torch.randn(2, 14, 14, 8, generator=torch.Generator().manual_seed(0))
    module = trace(TRANSFORMS[name], x).module()
    exact = TRANSFORMS[name](x.double())
    own = (TRANSFORMS[name](x) - exact).abs().max()
    sizes = _rounding_of(module)
    (moved,) = _Rounded(in_float64(module), sizes, 0).run(x.double())
    off = (moved - exact).abs().max()
    assert own / 2 < off < own * 20
