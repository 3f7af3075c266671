"""A reduction put in on the graph equals the same method patched into the classes by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from models.zoo import MODELS, tome
from models.zoo.vit import IMAGE, seeded
from torch import Tensor, nn

import tokexport

Build = Callable[[], nn.Module]

#: The patched model of the zoo, the plain one of the same weights, and the recipe.
TWINS: Final[dict[str, tuple[Build, str]]] = {
    "tome": (lambda: tome.small_timm(0), "tome:r=4"),
    "tome, falling r": (lambda: tome.small_timm(0), "tome:r=4,inflection=-0.75"),
    "tome, sizes not in attention": (lambda: tome.small_timm(0), "tome:r=4,prop_attn=false"),
    "tome, distilled": (
        lambda: tome.small_timm(0, "deit_tiny_distilled_patch16_224"),
        "tome:r=4",
    ),
    "mctf": (lambda: seeded(0), "mctf:r=7"),
    "mctf, one way": (lambda: seeded(0), "mctf:r=[0,0.2,0,0.2],bidirectional=false"),
    "mctf, to the fewest": (lambda: seeded(0), "mctf:r=18"),
    "pitome": (lambda: seeded(0), "pitome:keep=0.9"),
    "tofu": (lambda: seeded(0), "tofu:keep=0.9"),
    "dct": (lambda: seeded(0), "dct:keep=[1.0,0.8,1.0,0.8]"),
    "diffrate": (lambda: seeded(0), "diffrate:prune=[37,33,34,26],merge=[37,30,26,24]"),
    "evit": (lambda: seeded(0), "evit:keep=0.7,fuse=false,layers=[1,3]"),
    "evit, fused token": (lambda: seeded(0), "evit:keep=0.7,layers=[1,3]"),
    "evit, fused token, distilled": (
        lambda: seeded(0, distilled=True),
        "evit:keep=0.7,layers=[1,3],protect=1",
    ),
}


def _first(result: Any) -> Tensor:
    found: Tensor = result if isinstance(result, Tensor) else result[0]
    return found


@pytest.mark.parametrize("name", TWINS)
def test_it_equals_the_patched_model(name: str) -> None:
    build, recipe = TWINS[name]
    x = torch.randn(3, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))
    plain = build()
    reduced, patched = tokexport.reduce(plain, recipe, x[:1]), MODELS[name](0)[0]
    with torch.no_grad():
        found, wanted, unreduced = (_first(model(x)) for model in (reduced, patched, plain))
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-5)
    assert (unreduced - wanted).abs().max() > 1e-4  # the method did something
