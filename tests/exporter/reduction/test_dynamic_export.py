"""Every method's reduced model becomes a program of plain ATen operators for any batch."""

from __future__ import annotations

from typing import Final

import pytest
import torch
from helpers.thorough import thorough_but
from models.cli_models import plain_vit
from models.plain_vits import build, image

from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.errors import ModelNotSupportedError
from tokexport.exporter.recipe import parse_recipe
from tokexport.exporter.reduction.dynamic_export import export_any_batch
from tokexport.exporter.reduction.reduce import reduce_flat
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.reduction.methods.known import METHODS

#: What reduces three blocks of 36 patches, where the method's defaults do not.
RECIPES: Final[dict[str, str]] = {
    "diffrate": "diffrate:prune=[33,29,25],merge=[30,26,22]",
    "vtc-cls": "vtc-cls:tokens=9,start=1",
    "divprune": "divprune:keep=0.2",
    "mctf": "mctf:r=5,least=4",
}


def reduced(recipe: str) -> tuple[FlatModel, torch.Tensor]:
    model, x = plain_vit()
    x = torch.randn(*x.shape, generator=torch.Generator().manual_seed(0))
    flat = FlatModel(model, call_spec(model, (x,), {}))
    return FlatModel(reduce_flat(flat, (x,), parse_recipe(recipe)).model, flat.spec), x


ALL: Final = (
    *(RECIPES.get(kind.name, kind.name) for kind in METHODS),
    "tome:r=4,restore=true",
    "evit:restore=[1]",
)
FIRST: Final = ("tome:r=4,restore=true",)


@pytest.mark.parametrize("recipe", thorough_but(FIRST, ALL))
def test_any_batch(recipe: str) -> None:
    ops.register()  # as a compile in the same process does
    model, x = reduced(recipe)
    program = export_any_batch(model, (x,))
    names = {
        node.target.namespace
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    }
    assert names == {"aten"}
    y = torch.randn(7, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model.model(y)
        found = program.module()(y)
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=0.0, atol=1e-5)
    (kept,), _ = program.example_inputs
    assert kept.shape == (1, 3, 24, 24)


def test_an_output_class_of_a_library_becomes_a_dict() -> None:
    model = build("transformers ViT")
    x = image(1)
    flat = FlatModel(model, call_spec(model, (), {"pixel_values": x}))
    result = reduce_flat(flat, (x,), parse_recipe("tome:r=4"))
    program = export_any_batch(FlatModel(result.model, flat.spec), (x,))
    with torch.no_grad():
        found, wanted = program.module()(image(3)), result.model(pixel_values=image(3))
    assert type(found) is dict
    torch.testing.assert_close(found["last_hidden_state"], wanted.last_hidden_state)


class Foreign(torch.nn.Module):
    """Calls an operator that torch alone does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (B, K, C)."""
        index = torch.zeros(x.shape[0], 2, dtype=torch.int64)
        result: torch.Tensor = torch.ops.tokexport.gather_tokens(x, index)  # called here
        return result


def test_an_operator_that_torch_does_not_have_is_refused() -> None:
    ops.register()
    x = torch.randn(1, 4, 3)
    flat = FlatModel(Foreign(), call_spec(Foreign(), (x,), {}))
    with pytest.raises(ModelNotSupportedError, match="gather_tokens") as caught:
        export_any_batch(flat, (x,))
    assert "called here" in caught.value.where
