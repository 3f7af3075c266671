"""What the order of a sum does is as large as summing in another order shows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokexport.exporter.accumulation import LANES, accumulation
from tokexport.runtimes.base import Array
from tokexport.runtimes.neighbourhoods import epsilon

aten = torch.ops.aten
DEPTH = 768


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def in_lanes(terms: Array) -> Array:
    """Adds float32 terms (values, n) as a vector of lanes does, one vector after another."""
    lanes = np.zeros((len(terms), LANES), np.float32)
    for start in range(0, terms.shape[1], LANES):
        lanes += terms[:, start : start + LANES]
    while lanes.shape[1] > 1:
        lanes = lanes[:, ::2] + lanes[:, 1::2]
    return lanes[:, 0]


def terms_of(rows: Tensor, columns: Tensor) -> Array:
    """Returns the terms of a product (n, k) · (k, m) as (n m, k), rounded to float32."""
    products = rows.numpy()[:, :, None] * columns.numpy()[None]
    return products.transpose(0, 2, 1).reshape(-1, rows.shape[1])


ROWS, COLUMNS = drawn(40, DEPTH), drawn(DEPTH, 30)
IMAGE, KERNEL = drawn(1, 3, 96, 96), drawn(20, 3, 16, 16)
PATCHES = F.unfold(IMAGE, 16, stride=16)[0].T
#: An operator, what it takes, and the terms of every value that it gives.
SUMS: dict[str, tuple[Callable[..., Tensor], tuple[object, ...], Array]] = {
    "matmul": (aten.matmul.default, (ROWS, COLUMNS), terms_of(ROWS, COLUMNS)),
    "linear": (aten.linear.default, (ROWS, COLUMNS.T.contiguous()), terms_of(ROWS, COLUMNS)),
    "addmm": (aten.addmm.default, (torch.zeros(30), ROWS, COLUMNS), terms_of(ROWS, COLUMNS)),
    "conv2d": (
        aten.conv2d.default,
        (IMAGE, KERNEL, None, [16, 16]),
        terms_of(PATCHES, KERNEL.flatten(1).T),
    ),
    "sum": (aten.sum.dim_IntList, (ROWS, [1]), ROWS.numpy()),
    "mean": (aten.mean.dim, (ROWS, [1]), ROWS.numpy() / np.float32(DEPTH)),
    "attention": (
        aten.scaled_dot_product_attention.default,
        (torch.zeros(4, DEPTH, 8), torch.zeros(4, DEPTH, 8), drawn(4, DEPTH, 30)),
        (drawn(4, DEPTH, 30) / DEPTH).permute(0, 2, 1).reshape(-1, DEPTH).numpy(),
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_it_is_what_summing_in_lanes_shows(name: str) -> None:
    function, given, terms = SUMS[name]
    said = accumulation(function, given, {}, function(*given))
    assert said is not None
    exact = terms.astype(np.float64).sum(axis=1)
    shown = np.sqrt(np.mean(np.square(in_lanes(terms) - exact)))
    moved = epsilon("float32") / np.sqrt(3) * float(said.double().square().mean().sqrt())
    assert 0.5 < moved / shown < 2


@pytest.mark.parametrize("function", [aten.relu.default, aten.softmax.int, aten.argmax.default])
def test_what_sums_nothing_that_cancels_is_left(function: Callable[..., Tensor]) -> None:
    given = (ROWS, 1) if function is aten.softmax.int else (ROWS,)
    assert accumulation(function, given, {}, function(*given)) is None


def test_squares_beyond_float32_say_nothing() -> None:
    far = accumulation(aten.matmul.default, (ROWS * 1e30, COLUMNS), {}, ROWS @ COLUMNS)
    assert far is not None
    assert not far.any()
