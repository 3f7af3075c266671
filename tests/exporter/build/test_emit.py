"""Operators whose translation is this project's own, on every target."""

from __future__ import annotations

import pytest
import torch
from helpers.graphs import checked
from torch import Tensor

INF = float("inf")


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_exponentials_add_up_whatever_a_row_begins_with(target: str) -> None:
    rows = torch.tensor(
        [[-INF, -1500.0, -1501.0], [-INF, -INF, -INF], [-95.0, -INF, -96.0], [INF, 2.0, 3.0]]
    )

    def sums(x: Tensor) -> tuple[Tensor, ...]:
        return x.logsumexp(1), x.logsumexp(0, keepdim=True), x.logsumexp((0, 1))

    checked(sums, rows, targets=(target,))
    checked(sums, rows[:1] - 1e3, targets=(target,))
    assert rows[0].logsumexp(0).item() == pytest.approx(-1499.6867)
