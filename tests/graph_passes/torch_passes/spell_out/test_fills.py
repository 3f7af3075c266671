"""Values at given places of an axis."""

from __future__ import annotations

import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor


def test_every_type_axis_and_value() -> None:
    draw = torch.Generator().manual_seed(0)
    x, places = torch.randn(3, 6, 2, generator=draw), torch.tensor([4, -6, 4])

    def function(x: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        whole, truths = (x * 4).long(), x > 0
        return (
            x.index_fill(1, places, 2.5),
            x.index_fill(-2, places, x[0, 0, 0]),
            x.clone().index_fill_(0, torch.tensor([-1]), float("-inf")),
            x.index_fill(2, torch.tensor([], dtype=torch.long), 1.0),
            whole.index_fill(1, torch.tensor([0, 5]), 7),
            truths.index_fill(1, places, True),
            x.sum().index_fill(0, torch.tensor([0]), 3.0),
        )

    rewritten = checked(function, x, places, targets=TARGETS)
    assert "aten.index_fill" not in calls(rewritten)
