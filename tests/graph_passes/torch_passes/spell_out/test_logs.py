"""Logarithms of sums of powers neither overflow nor lose what is small."""

from __future__ import annotations

import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor

from tokexport.graph_passes.torch_passes.spell_out.logs import SpellOutLogs
from tokexport.graph_passes.torch_passes.spell_out.slopes import SpellOutSlopes

INF, NAN = float("inf"), float("nan")
X = torch.tensor(
    [
        [0.0, -0.0, 1.0, -300.0, 300.0, 2.0, 2.0],
        [-INF, -INF, -90.0, -200.0, 3.0, 89.0, -1e30],
        [INF, -INF, 5.0, INF, NAN, 1.0, 2.0],
    ]
)


def function(x: Tensor) -> tuple[Tensor, ...]:
    y = x.flip(1)
    pairs = torch.logaddexp(x, y), torch.logaddexp2(x, y), torch.logaddexp(x[:, :1], y)
    return *pairs, torch.logcumsumexp(x, 1), x.logcumsumexp(0), torch.logcumsumexp(x[0, 0], 0)


def test_sums_of_powers_of_any_size() -> None:
    rewritten = checked(function, X, passes=(SpellOutLogs(),))
    assert not [name for name in calls(rewritten) if "addexp" in name or "sumexp" in name]
    rows = X[:, [2, 3, 4, 5]].clone()
    rows[2, 2:] = 0.5  # a tolerance is relative to the largest: rows of one size, each by itself
    for row in (*X.split(1), *rows.split(1)):
        checked(lambda x: (torch.logcumsumexp(x, 1), torch.logaddexp(x, x.flip(1))), row)
    checked(function, X, targets=TARGETS)


def test_a_slope_that_is_drawn_is_its_mean_in_evaluation() -> None:
    function = torch.nn.functional.rrelu
    rewritten = checked(function, X, passes=(SpellOutSlopes(),), targets=TARGETS)
    assert calls(rewritten) == {"aten.leaky_relu": 1}
    checked(torch.nn.RReLU(0.1, 0.3).eval(), X, targets=("ort",))
