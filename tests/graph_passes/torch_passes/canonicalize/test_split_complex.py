"""Complex values are pairs of real ones, and Fourier transforms products with constants."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from helpers.graphs import TARGETS, calls, checked, emitted, lowered, rewrite, run_rewritten
from torch import Tensor, fft, nn

from tokexport.graph_passes.pipelines import Arithmetic
from tokexport.graph_passes.torch_passes.canonicalize.fourier_products import LARGEST
from tokexport.graph_passes.torch_passes.canonicalize.split_complex import SplitComplex

PASSES = (SplitComplex(),)
#: Of real numbers, to real numbers, and the others; each of one, two and all axes.
FROM_REAL = ("rfft", "ihfft")
TO_REAL = ("irfft", "hfft")
KINDS = ("fft", "ifft", *FROM_REAL, *TO_REAL)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parts(*values: Tensor) -> tuple[Tensor, ...]:
    """Gives the real numbers that complex values consist of."""
    return tuple(
        torch.view_as_real(one.resolve_conj()) if one.is_complex() else one for one in values
    )


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_of_any_axes_lengths_and_norms(kind: str) -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        z = x if kind in FROM_REAL else torch.complex(x, y)
        one, two, all_axes = (getattr(fft, kind + axes) for axes in ("", "2", "n"))
        found = [one(z, norm=norm) for norm in ("backward", "ortho", "forward")]
        found += [one(z, n, dim=1) for n in (3, 4, 9)]
        found += [two(z), two(z, norm="ortho", dim=(2, 1)), two(z, s=(4, 7), norm="forward")]
        found += [all_axes(z), all_axes(z, s=(3, 8)), all_axes(z, s=(2, -1), dim=(2, 0))]
        return parts(*found)

    rewritten = checked(function, drawn(2, 5, 6), drawn(2, 5, 6, seed=1), passes=PASSES)
    assert rewritten.changes["split complex values"] > 12
    assert not any("fft" in call or "complex" in call for call in calls(rewritten))


def by_fourier_gates(x: Tensor, weight: Tensor) -> Tensor:
    """Filters images (B, H, W, C) as global filter networks do."""
    spectrum = fft.rfft2(x, dim=(1, 2), norm="ortho") * torch.view_as_complex(weight)
    return fft.irfft2(spectrum, s=x.shape[1:3], dim=(1, 2), norm="ortho")


def by_low_frequencies(x: Tensor, weight: Tensor) -> Tensor:
    """Mixes the channels of the lowest frequencies, as Fourier neural operators do."""
    spectrum = fft.rfft2(x.permute(0, 3, 1, 2))
    mixed = torch.zeros_like(spectrum)
    kept = torch.view_as_complex(weight)[:3, :2]
    mixed[:, :, :3, :2] = torch.einsum("bixy,xyi->bixy", spectrum[:, :, :3, :2], kept)
    return fft.irfft2(mixed, s=x.shape[1:3])


FILTERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gates": by_fourier_gates,
    "low frequencies": by_low_frequencies,
    "a swapped spectrum": lambda x, w: fft.fftshift(fft.fft2(x), (1,)).abs(),
    "tokens and channels": lambda x, w: fft.fft(fft.fft(x, dim=-1), dim=1).real,
    "a squared spectrum": lambda x, w: fft.ifft(fft.fft(x, dim=1) ** 2, dim=1).real,
    "an autocorrelation": lambda x, w: fft.irfft(
        (lambda y: y * y.conj())(fft.rfft(x, dim=1)), n=6, dim=1
    ),
    "in float64": lambda x, w: by_fourier_gates(x.double(), w.double()).float(),
    "of a short time": lambda x, w: torch.stft(
        x.flatten(1), 16, 5, 12, torch.hann_window(12), return_complex=True
    ).abs(),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_run_on_every_target(name: str) -> None:
    x, weight = drawn(2, 6, 8, 4), drawn(6, 5, 4, 2, seed=1)
    rewritten = checked(FILTERS[name], x, weight, targets=(*TARGETS, "trt"), tolerance=4e-6)
    assert not any("fft" in call or "complex" in call for call in calls(rewritten))


def set_to(value: Tensor, number: complex) -> Tensor:
    value[:, 1:] = number
    return value


OPERATORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sums": lambda y, z, x: (1 - y) + (z - 2j) - x + torch.sub(x, y, alpha=2) + (x + z),
    "products": lambda y, z, x: y * z * x * 2 * (1 + 3j) + x * y,
    "quotients": lambda y, z, x: y / z + x / z + 1 / z + y / x + z / 2 + (1j / z),
    "a large divisor": lambda y, z, x: (y * 1e30) / (z * 1e30),
    "powers": lambda y, z, x: y**3 + z.square() + (z**-2) + y**1,
    "other powers": lambda y, z, x: y**0.5 + z**-1.5 + y**9,
    "norms": lambda y, z, x: torch.linalg.vector_norm(y, dim=-1) + z.norm(p=1, dim=2),
    "a spectrum set to zero": lambda y, z, x: set_to(y.clone(), 0) + set_to(z.clone(), 1 - 2j),
    "matrices": lambda y, z, x: (y @ z.mT) + x.to(y.dtype) @ z.mT + y.conj() @ x.mT.to(y.dtype),
    "one sum": lambda y, z, x: torch.bmm(y, z.mT) + torch.einsum("bij,bkj->bik", y, x + 0j),
    "a linear layer": lambda y, z, x: nn.functional.linear(y, z[0], z[0, :, 0]),
    "angles": lambda y, z, x: torch.polar(x.abs(), z.angle()) + y.sgn() + torch.sgn(y * 0),
    "an exponential": lambda y, z, x: (y * 0.1).exp() + (z + 3).log(),
    "shapes": lambda y, z, x: torch.cat(
        [y.flip(1), z.roll(1, 2), torch.stack([y, z]).sum(0), y.mean(1, True).expand(2, 4, 6)], 1
    ),
    "parts of several": lambda y, z, x: torch.cat([*y.chunk(2, 2), *z.split([1, 5], 2)], 2),
    "rows": lambda y, z, x: y.index_select(1, torch.tensor([2, 0])) + z[:, [1, 3]],
    "choices": lambda y, z, x: torch.where(x > 0, y, z).masked_fill(x > 1, 2 - 1j),
    "choices of a real number": lambda y, z, x: torch.where(x > 0, y, x.to(y.dtype)),
    "padding": lambda y, z, x: nn.functional.pad(y, (1, 2), value=3.0),
    "a written part": lambda y, z, x: torch.slice_scatter(y, z[:, :2], 1, 0, 2),
    "real and imaginary": lambda y, z, x: torch.complex(y.imag, z.real) + y.abs(),
    "of other types": lambda y, z, x: y.to(torch.complex128).to(torch.complex64) + x.to(y.dtype),
    "equal ones": lambda y, z, x: torch.stack([(y == z).float(), (y != y.clone()).float()]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_between_transforms(name: str) -> None:
    def function(a: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        y, z = torch.view_as_complex(a), torch.view_as_complex(b)
        return parts(OPERATORS[name](y, z, x))

    a, b, x = drawn(2, 4, 6, 2), drawn(2, 4, 6, 2, seed=1), drawn(2, 4, 6, seed=2)
    rewritten = checked(function, a, b, x, targets=("ort",), tolerance=4e-6)
    assert not any("complex" in call for call in calls(rewritten))


class Weighted(nn.Module):
    """Holds its filter as one complex parameter, and its shift as a complex buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.view_as_complex(drawn(6, 5, 4, 2)))
        self.register_buffer("shift", torch.view_as_complex(drawn(5, 4, 2, seed=1)))

    def forward(self, x: Tensor) -> Tensor:
        """Filters images (B, H, W, C)."""
        return fft.irfft2(fft.rfft2(x, dim=(1, 2)) * self.weight + self.shift, dim=(1, 2))


def test_complex_weights() -> None:
    checked(Weighted(), drawn(2, 6, 8, 4), targets=(*TARGETS, "trt"), tolerance=4e-6)


def test_an_operator_without_a_rule_takes_complex_values_as_before() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.view_as_real(fft.fft(x, dim=1).cumprod(1) * 2)

    rewritten = checked(function, drawn(2, 5, 6), passes=PASSES, tolerance=4e-6)
    left = calls(rewritten)
    assert left["aten.cumprod"] == left["aten.view_as_complex"] == left["aten.view_as_real"] == 1


def test_a_matrix_that_is_too_large_is_not_made() -> None:
    x = drawn(1, 5, math.isqrt(LARGEST) + 1)
    rewritten = checked(
        lambda x: (fft.fft(x).real, fft.fft(x, dim=1).real), x, passes=PASSES, tolerance=1e-5
    )
    assert calls(rewritten)["aten.fft_fft"] == 1
    assert calls(rewritten)["aten.matmul"] == 1


def test_products_with_a_transform_stay_in_float32() -> None:
    model = emitted(rewrite(by_fourier_gates, drawn(2, 6, 8, 4), drawn(6, 5, 4, 2, seed=1)))
    halves = lowered(model, "trt", Arithmetic("fp16"))
    products = [node for node in halves.graph if node.op_type == "MatMul"]
    assert len(products) == 4
    assert {node.outputs[0].dtype for node in products} == {ir.DataType.FLOAT}
    assert ir.DataType.FLOAT16 in {node.outputs[0].dtype for node in halves.graph}


@pytest.mark.parametrize("size", [1e-25, 1e-38, 1.0, 1e20, 3e38])
def test_no_square_of_a_magnitude_is_lost(size: float) -> None:
    def magnitudes(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        z = torch.complex(x, y)
        return z.abs() / size, torch.view_as_real(z.sgn()), z.abs().log() / 100

    x, y = (drawn(2, 9, seed=seed).clamp(-0.9, 0.9) * size for seed in (0, 1))
    x[0, 0] = y[0, 1] = 0.0
    checked(magnitudes, x, y, passes=PASSES)


def test_a_number_is_true_that_is_not_zero_in_either_part() -> None:
    def truths(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        z = torch.complex(x, y)
        return z.to(torch.bool), z.bool() | (x > 1)

    x = torch.tensor([0.0, 0.0, 2.0, -1.0])
    y = torch.tensor([0.0, 3.0, 0.0, -1.0])
    assert truths(x, y)[0].tolist() == [False, True, True, True]
    checked(truths, x, y, targets=TARGETS)


def test_an_inverse_power_does_not_overflow() -> None:
    def inverse(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return parts(torch.complex(x, y) ** -3)

    x, y = (drawn(2, 9, seed=seed) * 1e13 for seed in (0, 1))
    (found,) = run_rewritten(rewrite(inverse, x, y, passes=PASSES), x, y)
    (exact,) = parts(torch.complex(x.double(), y.double()) ** -3)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-42)
