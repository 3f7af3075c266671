"""Signs, long sides and inverse error functions, also of zeros, infinities and NaN."""

from __future__ import annotations

import torch
from helpers.graphs import TARGETS, calls, checked, emitted, lowered, rewrite, run_onnx
from torch import Tensor

from tokexport.graph_passes.torch_passes.spell_out.signs import SpellOutSigns

INF, NAN = float("inf"), float("nan")
#: Every pair of these is tried.
ENDS = (0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 2.5e20, -2.5e20, 3.25, INF, -INF, NAN)


def pairs() -> tuple[Tensor, Tensor]:
    one, other = torch.meshgrid(torch.tensor(ENDS), torch.tensor(ENDS), indexing="ij")
    return one.contiguous(), other.contiguous()


def signs(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return torch.copysign(x, y), torch.signbit(x), torch.copysign(x, -0.0), torch.copysign(x, 2.0)


def test_every_pair_has_its_sign_on_every_target() -> None:
    x, y = pairs()
    rewritten = checked(signs, x, y, passes=(SpellOutSigns(),), tolerance=0.0)
    assert {"aten.copysign", "aten.signbit"}.isdisjoint(calls(rewritten))
    model = emitted(rewrite(signs, x, y))
    for target in TARGETS:
        found = run_onnx(lowered(model, target), x, y, target=target)
        for one, other in zip(found, signs(x, y), strict=True):
            assert torch.equal(one.isnan(), other.isnan())
            known = ~other.isnan()
            assert torch.equal(one[known], other[known])
            assert torch.equal(one[known].signbit(), other[known].signbit())  # of zeros too


def test_signs_of_whole_numbers() -> None:
    whole = torch.arange(-3, 4)

    def function(x: Tensor) -> tuple[Tensor, ...]:
        return torch.copysign(x, -x), torch.signbit(x), torch.signbit(x > 0), x.copysign(-1)

    checked(function, whole, targets=TARGETS)


def test_long_sides() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return torch.hypot(x, y), torch.hypot(x * 1e-20, y * 1e-20), torch.hypot(y[:, :1], x[0])

    x, y = pairs()
    for target in TARGETS:
        model = lowered(emitted(rewrite(function, x, y)), target)
        for found, wanted in zip(run_onnx(model, x, y, target=target), function(x, y), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0.0, equal_nan=True)


def test_the_inverse_of_the_error_function() -> None:
    y = torch.tensor([[0.0, 0.3, -0.7, 0.71, -0.95, 0.999, 1.0, -1.0, 1.5, -INF, NAN]])
    checked(lambda y: (torch.erfinv(y), torch.special.erfinv(y / 2)), y, targets=TARGETS)
