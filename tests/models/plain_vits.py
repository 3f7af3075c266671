"""Plain ViTs of the libraries that people have trained ones from, shallow and narrow.

``PLAIN`` names them; each build returns a module in evaluation mode with random weights under a
seed, and ``SPECIAL`` says how many class, distillation and register tokens it has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

WIDTH, HEADS, IMAGE, PATCH = 48, 3, 48, 8
#: The blocks of most tests, and of those that reduce at several, or at none of the first.
DEPTH, DEEPER = 2, 4


def image(batch: int = 2) -> Tensor:
    """An example input of all of them."""
    return torch.randn(batch, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))


def _timm(name: str, depth: int, **options: Any) -> nn.Module:
    import timm

    sizes = {"img_size": IMAGE, "embed_dim": WIDTH, "num_heads": HEADS, "depth": depth}
    if "patch_size" not in options:
        sizes["patch_size"] = PATCH
    model: nn.Module = timm.create_model(name, pretrained=False, **{**sizes, **options})
    return model


def _torchvision(depth: int) -> nn.Module:
    from torchvision.models import VisionTransformer

    model: nn.Module = VisionTransformer(
        image_size=IMAGE,
        patch_size=PATCH,
        num_layers=depth,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        mlp_dim=2 * WIDTH,
        num_classes=10,
    )
    return model


def _transformers(kind: str, depth: int, **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind.removesuffix('Model')}Config")(
        hidden_size=WIDTH,
        num_hidden_layers=depth,
        num_attention_heads=HEADS,
        image_size=IMAGE,
        patch_size=PATCH,
        **options,
    )
    model: nn.Module = getattr(transformers, kind)(config)
    return model


def _open_clip(depth: int) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        image_size=IMAGE,
        patch_size=PATCH,
        width=WIDTH,
        layers=depth,
        heads=HEADS,
        mlp_ratio=2.0,
        output_dim=16,
    )
    return model


_BUILDS: Final[dict[str, Callable[[int], nn.Module]]] = {
    "timm DeiT": partial(_timm, "deit_tiny_patch16_224", num_classes=10),
    "timm DeiT, distilled": partial(_timm, "deit_tiny_distilled_patch16_224", num_classes=10),
    "timm ViT": partial(_timm, "vit_base_patch16_224", num_classes=10, qk_norm=True),
    "timm DINOv2 with registers": partial(_timm, "vit_small_patch14_reg4_dinov2", init_values=0.5),
    "timm EVA-02": partial(_timm, "eva02_tiny_patch14_224", num_classes=10),
    "timm SigLIP": partial(_timm, "vit_base_patch16_siglip_224"),
    "torchvision ViT": _torchvision,
    "transformers ViT": partial(_transformers, "ViTModel", intermediate_size=2 * WIDTH),
    "transformers CLIP": partial(_transformers, "CLIPVisionModel", intermediate_size=2 * WIDTH),
    "transformers DINOv2": partial(_transformers, "Dinov2Model", mlp_ratio=2),
    "transformers DINOv3": partial(
        _transformers, "DINOv3ViTModel", intermediate_size=2 * WIDTH, num_register_tokens=4
    ),
    "open_clip ViT": _open_clip,
}

SPECIAL: Final[dict[str, int]] = {
    "timm DeiT": 1,
    "timm DeiT, distilled": 2,
    "timm ViT": 1,
    "timm DINOv2 with registers": 5,
    "timm EVA-02": 1,
    "timm SigLIP": 0,
    "torchvision ViT": 1,
    "transformers ViT": 1,
    "transformers CLIP": 1,
    "transformers DINOv2": 1,
    "transformers DINOv3": 5,
    "open_clip ViT": 1,
}


def build(name: str, seed: int = 0, depth: int = DEPTH) -> nn.Module:
    """Builds one of them, of so many blocks."""
    torch.manual_seed(seed)
    model = _BUILDS[name](depth).eval()
    with torch.no_grad():  # some begin with weights of zero, or so small that nothing shows
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


PLAIN: Final[tuple[str, ...]] = tuple(_BUILDS)
