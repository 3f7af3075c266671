"""Differences of neighbours, and sums and means that leave NaN out."""

from __future__ import annotations

import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor

INF, NAN = float("inf"), float("nan")
X = torch.tensor([[1.0, NAN, -2.0, 0.5], [NAN, NAN, NAN, NAN], [INF, 3.0, NAN, 1.0]])
WHOLE = torch.tensor([[3, -1, 100, 7, 0, 200]])


def differences(*own: Tensor) -> tuple[Tensor, ...]:
    truths = own[0] > 3
    found = [truths.diff(), truths.diff(n=2, prepend=truths[:, :1])]
    for x in own:
        found += [x.diff(), x.diff(n=3), x.diff(prepend=x[:, :2], append=x[:, -1:]), x.diff(n=0)]
        found += [torch.diff(torch.cat([x, x + 1]), dim=0), x[0].diff()]
    return tuple(found)


def test_differences_of_every_type() -> None:
    kinds = torch.int64, torch.int32, torch.int16, torch.uint8, torch.float32
    rewritten = checked(differences, *(WHOLE.to(kind) for kind in kinds), targets=TARGETS)
    assert "aten.diff" not in calls(rewritten)


def test_sums_without_nan() -> None:
    def function(x: Tensor, whole: Tensor) -> tuple[Tensor, ...]:
        sums = x.nansum(), x.nansum(1), x.nansum((0, 1), keepdim=True), whole.nansum(1)
        means = x.nanmean(), x.nanmean(1), x.nanmean(0, keepdim=True), x[0, 0].nanmean()
        return *sums, *means, whole.nansum(1, dtype=torch.float32), whole.bool().nansum()

    rewritten = checked(function, X, WHOLE, targets=TARGETS)
    assert {"aten.nansum", "aten.nanmean"}.isdisjoint(calls(rewritten))
