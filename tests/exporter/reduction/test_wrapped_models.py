"""Compiled, hooked and patched models are reduced as what they compute; TorchScript is refused."""

from __future__ import annotations

from typing import Any, Final

import pytest
import torch
from models.plain_vits import DEEPER, build, image
from torch import Tensor, nn

import tokexport
from tokexport.exporter.errors import ModelNotSupportedError
from tokexport.graph_passes.reduction.errors import SurgeryError

RECIPE: Final = "tome:r=2"


def reduced(model: nn.Module) -> Tensor:
    answer: Tensor = tokexport.reduce(model, RECIPE, image())(image())
    return answer.detach()


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return reduced(build("timm DeiT"))


@pytest.fixture(scope="module")
def louder() -> Tensor:
    """What the model answers whose attention in one block is 1.5 times as loud."""
    model: Any = build("timm DeiT")
    with torch.no_grad():
        model.blocks[1].attn.proj.weight.mul_(1.5)
        model.blocks[1].attn.proj.bias.mul_(1.5)
    return reduced(model)


@pytest.mark.parametrize("part", [pytest.param("model", marks=pytest.mark.thorough), "block"])
def test_what_is_compiled_is_reduced_as_what_it_was_compiled_from(part: str, plain: Tensor) -> None:
    model: Any = build("timm DeiT")
    if part == "model":
        model = torch.compile(model, backend="eager")
    else:
        model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    torch.testing.assert_close(reduced(model), plain)


def test_a_hook_on_the_attention_of_one_block_counts(louder: Tensor) -> None:
    model: Any = build("timm DeiT")
    model.blocks[1].attn.register_forward_hook(lambda module, inputs, output: output * 1.5)
    torch.testing.assert_close(reduced(model), louder)


@pytest.mark.thorough
def test_a_forward_put_into_the_attention_of_one_block_counts(louder: Tensor) -> None:
    model: Any = build("timm DeiT")
    attention = model.blocks[1].attn
    own = attention.forward
    attention.forward = lambda *args, **kwargs: own(*args, **kwargs) * 1.5
    torch.testing.assert_close(reduced(model), louder)


def test_hooks_of_a_block_run_around_what_takes_its_place(plain: Tensor) -> None:
    model: Any = build("timm DeiT", depth=DEEPER)
    model.blocks[1].register_forward_hook(lambda module, inputs, output: output * 1.5)
    assert (reduced(model) - plain).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("model", "The model is TorchScript"),
        ("block", "The block 'blocks.0' is TorchScript"),
    ],
)
def test_torchscript_is_refused_as_that(part: str, said: str) -> None:
    model: Any = build("timm DeiT")
    if part == "model":
        model = torch.jit.trace(model, image())
    else:
        for place, block in enumerate(model.blocks):
            model.blocks[place] = torch.jit.trace(block, torch.randn(2, 37, 48))
    with pytest.raises((ModelNotSupportedError, SurgeryError), match=said):
        tokexport.reduce(model, RECIPE, image())


def test_blocks_without_a_batch_are_refused_with_what_they_take() -> None:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel as Encoder,
    )

    config = Qwen2_5_VLVisionConfig(
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        patch_size=4,
        window_size=16,
        out_hidden_size=24,
        fullatt_block_indexes=[1],
    )

    class Fixed(nn.Module):
        """The encoder on one image of 8 × 8 patches."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = Encoder(config)
            self.register_buffer("grid", torch.tensor([[1, 8, 8]]))

        def forward(self, patches: Tensor) -> Any:
            """Takes (64, 96)."""
            return self.encoder(patches, grid_thw=self.grid)[0]

    with pytest.raises(ModelNotSupportedError) as caught:
        tokexport.reduce(Fixed().eval(), RECIPE, torch.randn(64, 96))
    assert "Qwen2_5_VLVisionBlock) take (64, 32) and give (64, 32)." in caught.value.where


def test_blocks_that_pool_their_tokens_are_refused_with_what_they_take() -> None:
    from transformers import HieraConfig, HieraModel

    config = HieraConfig(
        embed_dim=16,
        image_size=[64, 64],
        depths=[1, 2, 2],
        num_heads=[1, 2, 4],
        num_query_pool=2,
        masked_unit_attention=[True, True, False],
    )
    with pytest.raises(ModelNotSupportedError) as caught:
        tokexport.reduce(HieraModel(config).eval(), RECIPE, torch.randn(1, 3, 64, 64))
    assert "(HieraLayer) take (1, 256, 16) and give (1, 64, 32)." in caught.value.where


def test_siglip_2_is_reduced() -> None:
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    config = Siglip2VisionConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=96,
        patch_size=4,
        num_patches=36,
    )
    torch.manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(2, 36, 48),
        "pixel_attention_mask": torch.ones(2, 36, dtype=torch.long),
        "spatial_shapes": torch.tensor([[6, 6], [6, 6]]),
    }
    model = tokexport.reduce(Siglip2VisionModel(config).eval(), RECIPE, inputs)
    assert model(**inputs).last_hidden_state.shape == (2, 30, 48)
