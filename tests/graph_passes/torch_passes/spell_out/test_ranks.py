"""Medians and k-th values, of rows with NaN, of whole numbers and of everything at once."""

from __future__ import annotations

import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor

INF, NAN = float("inf"), float("nan")
X = torch.tensor(
    [
        [3.0, -1.0, 2.0, 2.5, 0.0, 7.0],
        [NAN, 1.0, INF, -2.0, 0.5, NAN],
        [NAN, NAN, NAN, NAN, NAN, NAN],
        [INF, -INF, 4.0, 1.0, -1.0, NAN],
    ]
)


def of_rows(x: Tensor) -> tuple[Tensor, ...]:
    rows = x.median(1).values, x.nanmedian(1, keepdim=True).values, x.kthvalue(5, 1).values
    return *rows, x[:, :5].median(0).values, x.nanmedian(), x.median(), x[0].median()


def places(x: Tensor) -> tuple[Tensor, ...]:
    return x.median(1).indices, x.nanmedian(0, keepdim=True).indices, x.kthvalue(5, 1).indices


def test_rows_with_and_without_nan() -> None:
    rewritten = checked(of_rows, X, targets=TARGETS)
    assert {"aten.median", "aten.nanmedian", "aten.kthvalue"}.isdisjoint(calls(rewritten))


def test_their_places() -> None:
    checked(places, torch.cat([X[:2], X[3:]])[:, [2, 0, 1, 3, 4, 5]], targets=TARGETS)
    checked(places, X.nan_to_num(9.0)[[0]].T + torch.arange(6) / 8, targets=("ort",))


def test_whole_numbers_of_any_type() -> None:
    whole = torch.tensor([[5, -3, 9, 100, 7, 0], [1, 2, 3, 4, 6, 5]])

    def function(*own: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            part
            for x in own
            for part in (*x.median(1), x.nanmedian(0).values, x.median(), *x.kthvalue(2, 1, True))
        )

    kinds = torch.int64, torch.int32, torch.int16, torch.uint8
    checked(function, *(whole.to(kind) for kind in kinds), targets=TARGETS)


def test_of_one_number() -> None:
    checked(lambda x: (*x.median(0), x.sum().median()), torch.tensor([2.5]), targets=("ort",))
