"""A model in memory says which image it takes, where its library wrote that down."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tokexport
from tokexport.exporter.config import InputConfig
from tokexport.exporter.eager.example_inputs import prepare
from tokexport.exporter.errors import UsageError
from tokexport.exporter.source.in_memory import source_in_memory


def of_timm() -> nn.Module:
    import timm

    model: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), in_chans=1)
    return model


def of_torchvision() -> nn.Module:
    from torchvision.models import VisionTransformer

    model: nn.Module = VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    return model


def of_transformers() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=32,
        num_channels=1,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model: nn.Module = ViTForImageClassification(config)
    return model


KNOWN: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "timm": (of_timm, "x", (1, 1, 32, 48)),
    "torchvision": (of_torchvision, "x", (1, 3, 32, 32)),
    "transformers": (of_transformers, "pixel_values", (1, 1, 32, 32)),
}


@pytest.mark.parametrize("library", KNOWN)
def test_it_is_known_and_the_model_takes_it(library: str) -> None:
    build, name, shape = KNOWN[library]
    model = build().eval()
    source = source_in_memory(model, None)
    assert source.input_shapes == {name: shape}
    flat, specs, batches = prepare(source, InputConfig())
    assert [(spec.name, spec.shape) for spec in specs] == [(name, shape)]
    with torch.no_grad():
        assert flat(torch.from_numpy(next(iter(batches))[name]))[0].shape[0] == 1


def test_a_model_is_reduced_without_example_inputs() -> None:
    model = of_torchvision().eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = tokexport.reduce(model, "tome:r=1")(x)
        wanted = tokexport.reduce(model, "tome:r=1", x)(x)
    torch.testing.assert_close(found, wanted)


def test_examples_come_before_what_the_model_says() -> None:
    source = source_in_memory(of_torchvision(), torch.zeros(5, 3, 32, 32))
    assert source.input_shapes is None
    assert prepare(source, InputConfig())[1][0].shape == (5, 3, 32, 32)


class OwnImageSize(nn.Module):
    """Has an attribute of that name, and no library says what it means."""

    image_size = 32

    def forward(self, x: Tensor) -> Tensor:
        """Returns x."""
        return x


def test_a_name_alone_says_nothing() -> None:
    source = source_in_memory(OwnImageSize(), None)
    assert source.input_shapes is None
    with pytest.raises(UsageError, match="Nothing says which inputs the model takes"):
        prepare(source, InputConfig())
