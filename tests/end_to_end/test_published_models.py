"""Models that nobody here wrote, at the sizes they are used at, for every target."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.thorough import thorough_but
from models.tome_patched import patched
from torch import nn

import tokexport
from tokexport.runtimes.bundle.manifest import BUILT_NOT_RUN, PASSED
from tokexport.runtimes.verification import verify_bundle

IMAGE = torch.zeros(1, 3, 224, 224)
TOME_R13 = (197, 184, 171, 158, 145, 132, 119, 106, 93, 80, 67, 54)


def plain_deit() -> nn.Module:
    """Timm's DeiT-S, four of its layers."""
    import timm

    model: nn.Module = timm.create_model("deit_small_patch16_224", pretrained=False, depth=4)
    return model


def transformers_vit() -> nn.Module:
    """ViT-S/16 of transformers, four of its layers."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=384,
        num_hidden_layers=4,
        num_attention_heads=6,
        intermediate_size=1536,
        num_labels=100,
    )
    model: nn.Module = ViTForImageClassification(config)
    return model


def torchvision_vit() -> nn.Module:
    """Torchvision's VisionTransformer, four layers; its head starts at zero and is drawn here."""
    from torchvision.models import VisionTransformer

    model = VisionTransformer(224, 16, 4, 6, 384, 1536, num_classes=100)
    nn.init.normal_(model.heads[-1].weight)
    return model


def patch_merger() -> nn.Module:
    """vit-pytorch's ViT with a patch merger (Renggli et al. 2022): 196 tokens become 8."""
    from vit_pytorch.vit_with_patch_merger import ViT

    return ViT(
        image_size=224,
        patch_size=16,
        num_classes=100,
        dim=192,
        depth=6,
        heads=3,
        patch_merge_layer=3,
        patch_merge_num_tokens=8,
        mlp_dim=384,
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "class-patched ToMe DeiT-S, four layers": (partial(patched, depth=4), TOME_R13[:4]),
    "class-patched ToMe DeiT-S": (patched, TOME_R13),
    "plain DeiT-S": (plain_deit, (197,) * 4),
    "transformers ViT": (transformers_vit, (197,) * 4),
    "torchvision ViT": (torchvision_vit, (197,) * 4),
    "vit-pytorch patch merger": (patch_merger, (196, 196, 196, 196, 8, 8, 8)),
}


TARGETS = ("ort", "openvino", "trt")


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("name", "target"),
    thorough_but(
        [("class-patched ToMe DeiT-S, four layers", "ort")],
        itertools.product(MODELS, TARGETS),
    ),
)
def test_it_compiles_within_the_fp32_gate(name: str, target: str, tmp_path: Path) -> None:
    build, schedule = MODELS[name]
    torch.manual_seed(0)
    example = {"pixel_values": IMAGE} if name.startswith("transformers") else IMAGE
    result = tokexport.compile(build(), example, target, output=tmp_path / "bundle")
    assert result.status == (BUILT_NOT_RUN if target == "trt" else PASSED)
    assert result.report.token_schedule == schedule
    assert result.report.warnings == () or all("busy" in w for w in result.report.warnings)
    for gate in result.report.gates.values():
        assert gate.tolerance < 1e-4, gate.reason
    if target == "trt":
        engine = result.bundle / "model.engine"
        assert engine.stat().st_size > 1_000_000
    else:
        assert verify_bundle(result.bundle).passed
