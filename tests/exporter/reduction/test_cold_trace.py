"""A reduction that is traced before it ever ran still runs afterwards."""

from __future__ import annotations

import torch
from models.plain_vits import build, image

import tokexport


def test_constants_made_while_tracing_hold_values() -> None:
    x = image()
    for recipe in ("dct:keep=0.77", "random:keep=0.63"):
        model = tokexport.reduce(build("timm DeiT"), recipe, x)
        traced = torch.export.export(model, (x,), strict=False).module()
        with torch.no_grad():
            torch.testing.assert_close(traced(x), model(x), rtol=0.0, atol=1e-6)
