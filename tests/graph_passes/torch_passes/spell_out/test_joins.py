"""Joins of every name, circular padding and convolutions without bias run on every target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor

from tokexport.graph_passes.torch_passes.spell_out.joins import SpellOutJoins


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_stacks_are_concatenations() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        row, number = x[0, 0], x[0, 0, 0]
        ways = (torch.hstack, torch.vstack, torch.dstack, torch.column_stack)
        return tuple(way([one, one * 2]) for way in ways for one in (x, x[0], row, number))

    rewritten = checked(function, drawn(2, 6, 8), targets=TARGETS)
    assert not [call for call in calls(rewritten) if call.endswith("stack")]


def test_padding_that_goes_around() -> None:
    pads = [(1, 2, 3, 0), (0, 0, 5, 0), (-1, 2, 1, -2)]
    rewritten = checked(
        lambda x: tuple(F.pad(x, pad, mode="circular") for pad in pads),
        drawn(2, 3, 5, 6),
        targets=TARGETS,
    )
    assert "aten.pad" not in calls(rewritten)


def test_other_padding_stays() -> None:
    rewritten = checked(
        lambda x: F.pad(x, (1, 2), mode="reflect"), drawn(2, 3, 5), passes=(SpellOutJoins(),)
    )
    assert rewritten.changes == {"spell out joins": 0}


def test_a_convolution_of_three_axes_without_bias() -> None:
    weight = drawn(2, 1, 2, 3, 3)

    def function(x: Tensor) -> tuple[Tensor, ...]:
        return (
            F.conv3d(x, weight),
            F.conv3d(x, weight, stride=2),
            F.conv3d(x, weight, weight[:, 0, 0, 0, 0]),
        )

    checked(function, drawn(2, 1, 3, 6, 5), targets=TARGETS, tolerance=2e-6)
