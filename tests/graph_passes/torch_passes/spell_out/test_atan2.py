"""Angles of points, also where a coordinate is a zero of either sign."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked, emitted, lowered, rewrite, run_onnx
from torch import Tensor

from tokexport.graph_passes.torch_passes.spell_out.atan2 import SpellOutAtan2

#: Every pair of these is a point.
ENDS = (0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 2.5e20, -2.5e20, 3.0, -0.25)


def points() -> tuple[Tensor, Tensor]:
    grid = torch.tensor(ENDS)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    return y.contiguous(), x.contiguous()


def test_every_quadrant_and_its_edges() -> None:
    rewritten = checked(torch.atan2, *points(), passes=(SpellOutAtan2(),), tolerance=1e-7)
    assert calls(rewritten)["aten.atan2"] == 0


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_on_a_target_too(target: str) -> None:
    y, x = points()
    (found,) = run_onnx(lowered(emitted(rewrite(torch.atan2, y, x)), target), y, x, target=target)
    torch.testing.assert_close(found, torch.atan2(y, x), rtol=0.0, atol=1e-6)


def test_types_and_shapes_follow_those_of_pytorch() -> None:
    whole = torch.arange(-3, 4)
    checked(lambda y, x: torch.atan2(y[:, None], x), whole, whole, targets=TARGETS)
    checked(lambda y, x: torch.atan2(y, x), whole.float(), whole, targets=TARGETS)


def test_the_angle_of_a_complex_number() -> None:
    def angle(x: Tensor, y: Tensor) -> Tensor:
        return torch.angle(torch.complex(x, y))

    x = torch.tensor([[-1.5, -1.5, 0.0, 2.0, -0.0], [0.0, 1.0, -1.0, -3.0, 5.0]])
    y = torch.tensor([[0.0, -0.0, -1.0, 0.0, -1.0], [0.0, 0.0, 0.0, -3.0, -0.0]])
    assert angle(x, y)[0, 0] == pytest.approx(math.pi)
    checked(angle, x, y, targets=("ort",))
