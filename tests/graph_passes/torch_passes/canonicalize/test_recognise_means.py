"""A sum of rows over their number is a mean; over anything else it stays a sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor

Reduce = Callable[[Tensor, Tensor, Tensor], Tensor | tuple[Tensor, ...]]


def add(y: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    return y.scatter_add(1, rows[..., None].expand(-1, -1, x.shape[2]), x)


def ones(x: Tensor) -> Tensor:
    return torch.ones(*x.shape[:2], 1)


def flat_mean(y: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    """By index_add over the flattened batch."""
    at = (rows + y.shape[1] * torch.arange(len(y))[:, None]).flatten()
    total = y.flatten(0, 1).index_add(0, at, x.flatten(0, 1))
    terms = torch.ones(len(total), 1).index_add(0, at, torch.ones(len(at), 1))
    return (total / terms).unflatten(0, (len(y), -1))


#: Each takes y (B, N, C), rows (B, K) and x (B, K, C).
MEANS: dict[str, Reduce] = {
    "sum over counts": lambda y, i, x: add(y, i, x) / add(ones(y), i, ones(x)),
    "counts without channels": lambda y, i, x: (
        add(y, i, x)
        / torch.ones_like(y[..., 0]).scatter_add(1, i, torch.ones_like(x[..., 0])).unsqueeze(2)
    ),
    "flattened batch": flat_mean,
    "one channel": lambda y, i, x: add(y[..., :1], i, x[..., :1]) / add(ones(y), i, ones(x)),
}


def given() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y, x = (torch.randn(2, n, 4, generator=generator) for n in (5, 7))
    return y, torch.tensor([[4, 4, 0, 1, 1, 1, 0], [3, 2, 3, 0, 3, 3, 1]]), x


def positions(rows: Tensor) -> Tensor:
    """Rows that the graph knows to lie below 5."""
    return rows.clamp(0, 4)


@pytest.mark.parametrize("name", MEANS)
def test_a_mean(name: str) -> None:
    rewritten = checked(
        lambda y, rows, x: MEANS[name](y, positions(rows), x), *given(), targets=TARGETS
    )
    assert rewritten.recognised == {"scatter_tokens": 1}
    assert calls(rewritten)["aten.div"] == 0
    (scatter,) = (n for n in rewritten.program.graph.nodes if "scatter_tokens" in str(n.target))
    assert scatter.args[3] == "mean"


def test_counts_that_are_read_on_stay_beside_the_mean() -> None:
    def function(y: Tensor, rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        terms = add(ones(y), rows, ones(x))
        return add(y, rows, x) / terms, terms

    rewritten = checked(function, *given(), targets=("ort",))
    assert rewritten.recognised == {"scatter_tokens": 2}
    assert calls(rewritten)["aten.div"] == 0


OTHERS: dict[str, Reduce] = {
    "weighted": lambda y, i, x: add(y, i, x) / add(y[..., :1].exp(), i, x[..., :1].exp()),
    "counts from two": lambda y, i, x: add(y, i, x) / add(ones(y) * 2, i, ones(x)),
    "counts from nothing": lambda y, i, x: add(y, i, x) / (add(ones(y) * 0, i, ones(x)) + 1),
    "counts of other rows": lambda y, i, x: add(y, i, x) / add(ones(y), i.flip(1) // 2, ones(x)),
    "the sum read as well": lambda y, i, x: (
        (total := add(y, i, x)) / add(ones(y), i, ones(x)),
        total * 2,
    ),
    "the largest": lambda y, i, x: (
        y.scatter_reduce(1, i[..., None].expand_as(x), x, "amax") / add(ones(y), i, ones(x))
    ),
    "counts over sums": lambda y, i, x: add(ones(y), i, ones(x)) / add(y, i, x),
    "by another axis": lambda y, i, x: (
        add(y[:, :4], i.clamp(max=3), x) / add(ones(y[:, :4]), i.clamp(max=3), ones(x)).mT
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_quotient_stays(name: str) -> None:
    rewritten = checked(lambda y, rows, x: OTHERS[name](y, positions(rows), x), *given())
    assert calls(rewritten)["aten.div"] == 1
    assert rewritten.recognised["scatter_tokens"] == 2
