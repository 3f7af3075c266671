"""What the order of a sum does is as large as summing in another order shows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokexport.exporter.rounding.accumulation import LANES, accumulation
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import epsilon

aten = torch.ops.aten
DEPTH = 768


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def added(terms: Array, lanes: int) -> Array:
    """Adds float32 terms (values, n) to so many sums in turn, and those to one another."""
    sums = np.zeros((len(terms), lanes), np.float32)
    for start in range(0, terms.shape[1], lanes):
        sums += terms[:, start : start + lanes]
    while sums.shape[1] > 1:
        sums = sums[:, ::2] + sums[:, 1::2]
    return sums[:, 0]


def terms_of(rows: Tensor, columns: Tensor) -> Array:
    """Returns the terms of a product (n, k) · (k, m) as (n m, k), rounded to float32."""
    products = rows.numpy()[:, :, None] * columns.numpy()[None]
    return products.transpose(0, 2, 1).reshape(-1, rows.shape[1])


ROWS, COLUMNS = drawn(40, DEPTH), drawn(DEPTH, 30)
IMAGE, KERNEL = drawn(1, 3, 96, 96), drawn(20, 3, 16, 16)
PATCHES = F.unfold(IMAGE, 16, stride=16)[0].T
VALUES = drawn(4, DEPTH, 30)
#: An operator, what it takes, the terms of every value that it gives, and how many sums it keeps.
SUMS: dict[str, tuple[Callable[..., Tensor], tuple[object, ...], Array, int]] = {
    "matmul": (aten.matmul.default, (ROWS, COLUMNS), terms_of(ROWS, COLUMNS), 1),
    "a product of one sign": (
        aten.matmul.default,
        (ROWS.abs(), COLUMNS.abs()),
        terms_of(ROWS.abs(), COLUMNS.abs()),
        1,
    ),
    "linear": (aten.linear.default, (ROWS, COLUMNS.T.contiguous()), terms_of(ROWS, COLUMNS), 1),
    "addmm": (aten.addmm.default, (torch.zeros(30), ROWS, COLUMNS), terms_of(ROWS, COLUMNS), 1),
    "conv2d": (
        aten.conv2d.default,
        (IMAGE, KERNEL, None, [16, 16]),
        terms_of(PATCHES, KERNEL.flatten(1).T),
        1,
    ),
    "sum": (aten.sum.dim_IntList, (ROWS, [1]), ROWS.numpy(), LANES),
    "a sum over rows": (aten.sum.dim_IntList, (ROWS.T, [0]), ROWS.numpy(), 1),
    "mean": (aten.mean.dim, (ROWS, [-1]), ROWS.numpy() / np.float32(DEPTH), LANES),
    "a mean over rows": (
        aten.mean.dim,
        (VALUES + 1, [1]),
        ((VALUES + 1) / DEPTH).permute(0, 2, 1).reshape(-1, DEPTH).numpy(),
        1,
    ),
    "attention": (
        aten.scaled_dot_product_attention.default,
        (torch.zeros(4, DEPTH, 8), torch.zeros(4, DEPTH, 8), VALUES),
        (VALUES / DEPTH).permute(0, 2, 1).reshape(-1, DEPTH).numpy(),
        1,
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_it_is_what_adding_one_by_one_shows(name: str) -> None:
    function, given, terms, lanes = SUMS[name]
    said = accumulation(function, given, {}, function(*given))
    assert said is not None
    exact = terms.astype(np.float64).sum(axis=1)
    shown = np.sqrt(np.mean(np.square(added(terms, lanes) - exact)))
    moved = epsilon("float32") / np.sqrt(3) * float(said.double().square().mean().sqrt())
    assert 0.9 < moved / shown < 2.5


@pytest.mark.parametrize("function", [aten.relu.default, aten.softmax.int, aten.argmax.default])
def test_what_sums_nothing_that_cancels_is_left(function: Callable[..., Tensor]) -> None:
    given = (ROWS, 1) if function is aten.softmax.int else (ROWS,)
    assert accumulation(function, given, {}, function(*given)) is None


def test_squares_beyond_float32_say_nothing() -> None:
    far = accumulation(aten.matmul.default, (ROWS * 1e30, COLUMNS), {}, ROWS @ COLUMNS)
    assert far is not None
    assert not far.any()
