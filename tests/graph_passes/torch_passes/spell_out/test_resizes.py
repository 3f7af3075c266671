"""An antialiased resize is two products with constants, and gives what PyTorch gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor

from tokexport.graph_passes.torch_passes.spell_out.resizes import SpellOutResizes

#: Sizes, or factors of an image of 16 × 20.
ASKED: list[dict[str, Any]] = [
    {"size": (7, 9)},
    {"size": (24, 9)},
    {"size": (16, 33)},
    {"size": (1, 1)},
    {"scale_factor": 0.37},
    {"scale_factor": (0.37, 1.3)},
    {"scale_factor": 0.37, "recompute_scale_factor": True},
]


def image() -> Tensor:
    return torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialiased_resizes(mode: str) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            F.interpolate(x, **asked, mode=mode, align_corners=corners, antialias=True)
            for corners in (False, True)
            for asked in ASKED
        )

    rewritten = checked(function, image(), targets=(*TARGETS, "trt"), tolerance=2e-6)
    assert rewritten.changes["spell out resizes"] == 2 * len(ASKED)
    assert not any("upsample" in call for call in calls(rewritten))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_other_resizes_stay(mode: str) -> None:
    rewritten = checked(
        lambda x: F.interpolate(x, (7, 9), mode=mode), image(), passes=(SpellOutResizes(),)
    )
    assert rewritten.changes == {"spell out resizes": 0}
    assert calls(rewritten)[f"aten.upsample_{mode}2d"] == 1
