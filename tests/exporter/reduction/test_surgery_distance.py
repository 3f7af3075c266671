"""How far blocks taken apart may be from the model: by the scale around each value."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tokexport.exporter.reduction.surgery_distance import Answer, local_distance

FLOOR = 1e-5


class Loud(nn.Module):
    """Gives tokens (B, N, C) with one channel a million times as loud as the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.LayerNorm(16))
        with torch.no_grad():
            self.body[3].weight[3] = 1e6

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.body(x),)


class Cancels(nn.Module):
    """Gives quiet sums of loud numbers, added up from the front or from behind."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.turned = turned

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loud = torch.cat([1e4 * x.exp(), torch.sin(x), -1e4 * x.exp()], dim=1)
        loud = loud.flip(1) if self.turned else loud
        total = torch.zeros_like(loud[:, 0])
        for row in loud.unbind(1):
            total = total + row
        return (total, loud)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def answer_of(model: nn.Module, x: Tensor) -> tuple[Answer, tuple[Tensor, ...]]:
    with torch.no_grad():
        outputs = model(x)
    return Answer(model, (x,), outputs), outputs


@pytest.mark.parametrize("factor", [1.1, 1.01])
def test_an_error_in_one_channel_shows_beside_a_loud_one(factor: float) -> None:
    answer, (tokens,) = answer_of(Loud().eval(), drawn(2, 9, 16))
    wrong = tokens.clone()
    wrong[..., 5] *= factor
    largest = float((wrong - tokens).abs().max() / tokens.abs().max())
    assert largest < FLOOR / 10
    assert answer.distance(0, wrong, FLOOR) > 10 * FLOOR
    assert answer.distance(0, tokens, FLOOR) == 0


def test_a_fill_hides_nothing() -> None:
    wanted = torch.cat([drawn(2, 10), torch.full((2, 3), torch.finfo(torch.float32).min)], dim=1)
    found = wanted.clone()
    found[1, 2] += 0.1
    assert local_distance(wanted, found, FLOOR) > FLOOR


def test_quiet_sums_of_loud_numbers_may_be_off_by_what_rounding_does() -> None:
    x = drawn(2, 40, 6)
    answer, (sums, _) = answer_of(Cancels(turned=False), x)
    with torch.no_grad():
        turned, _ = Cancels(turned=True)(x)
    assert local_distance(sums, turned, FLOOR) > FLOOR
    assert answer.distance(0, turned, FLOOR) <= FLOOR
    assert answer.distance(0, 1.1 * turned, FLOOR) > FLOOR


class Fickle(nn.Module):
    """Moves by chance."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x + torch.randn_like(x),)


def test_chance_is_no_rounding() -> None:
    answer, (moved,) = answer_of(Fickle(), drawn(2, 9))
    assert answer.distance(0, moved * (1 + 1e-4), FLOOR) > FLOOR


class Looks(nn.Module):
    """Refuses to run while someone looks at its operators."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("looked at")
        return (2 * x,)


def test_where_rounding_cannot_be_measured_the_floor_holds() -> None:
    answer, (doubled,) = answer_of(Looks(), drawn(2, 9))
    assert answer.distance(0, doubled * (1 + 1e-4), FLOOR) > FLOOR
    assert answer.distance(0, doubled * (1 + 1e-6), FLOOR) <= FLOOR


def test_what_both_lack_is_no_difference_and_whole_numbers_are_equal_or_not() -> None:
    odd = torch.tensor([[math.nan, math.inf, -math.inf, 1.0, 2.0, 3.0]])
    assert local_distance(odd, odd.clone(), FLOOR) == 0
    assert local_distance(odd, odd.nan_to_num(), FLOOR) == math.inf
    whole = torch.arange(5)
    assert local_distance(whole, whole.clone(), FLOOR) == 0
    assert local_distance(whole, whole + 1, FLOOR) == math.inf
    assert local_distance(torch.tensor(2.0), torch.tensor(2.0), FLOOR) == 0
    assert local_distance(drawn(0, 3), drawn(0, 3), FLOOR) == 0
