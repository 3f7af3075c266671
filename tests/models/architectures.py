"""The real classes of timm, transformers and vit-pytorch, shallow and narrow, with drawn weights.

``MODELS`` names every one; ``build(name)`` returns the module and an example input. The libraries
start many weights at zero or next to it (layer scales, relative positions, heads), which would hide
an error there: every weight is drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from models import super_tokens
from torch import Tensor, nn

Example = Tensor | dict[str, Tensor]
CLASSES: Final = 10
IMAGE: Final = 64


def build(name: str, seed: int = 0) -> tuple[nn.Module, Example]:
    """Returns a model in evaluation mode and an example of its input."""
    torch.manual_seed(seed)
    model = draw(MODELS[name]().eval())
    images = torch.zeros(BATCH.get(name, 1), 3, SIDE.get(name, IMAGE), SIDE.get(name, IMAGE))
    return model, {"pixel_values": images} if name.startswith("transformers ") else images


def draw(model: nn.Module) -> nn.Module:
    """Draws weights and running statistics of a size that lets every layer count."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim in (2, 4) and not name.endswith(("token", "tokens", "table")):
                weight.normal_(0, weight[0].numel() ** -0.5)
            elif weight.ndim == 1 and not name.endswith("bias"):
                weight.uniform_(0.5, 1.5)
            elif weight.ndim > 0:
                weight.normal_(0, 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)
        return model

    return make


def _transformers(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        architecture = getattr(transformers, name)
        model: nn.Module = architecture(architecture.config_class(**options))
        return model

    return make


def _vit_pytorch(module: str, name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import importlib

        architecture = getattr(importlib.import_module(f"vit_pytorch.{module}"), name)
        model: nn.Module = architecture(num_classes=CLASSES, **options)
        return model

    return make


def _caformer() -> nn.Module:
    """Convolutions in the first two stages and attention in the last two (Yu et al. 2022)."""
    from timm.models import metaformer

    convolution, attention = metaformer.SepConv, metaformer.Attention
    model: nn.Module = metaformer.MetaFormer(
        num_classes=CLASSES,
        depths=(1, 1, 1, 1),
        dims=(8, 16, 32, 32),
        token_mixers=[convolution, convolution, attention, attention],
        norm_layers=[metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2,
    )
    return model


def _volo() -> nn.Module:
    """Outlook attention, which folds windows that overlap (Yuan et al. 2021)."""
    from timm.models.volo import VOLO

    model: nn.Module = VOLO(
        img_size=IMAGE,
        num_classes=CLASSES,
        layers=(1, 1, 1, 1),
        embed_dims=(16, 32, 32, 32),
        num_heads=(2, 2, 2, 2),
        mlp_ratio=2.0,
        use_mix_token=False,
    )
    return model


def _nest() -> nn.Module:
    """Attention inside blocks of the image, joined level by level (Zhang et al. 2022)."""
    from timm.models.nest import Nest

    model: nn.Module = Nest(
        img_size=IMAGE,
        num_classes=CLASSES,
        num_levels=2,
        embed_dims=(16, 32),
        num_heads=(1, 2),
        depths=(1, 1),
    )
    return model


class TorchEncoderVit(nn.Module):
    """A ViT of torch's own transformer layers."""

    def __init__(self, dim: int = 32, heads: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 16, 16)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, (IMAGE // 16) ** 2 + 1, dim))
        layer = nn.TransformerEncoderLayer(
            dim, heads, 2 * dim, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        result: Tensor = self.head(self.encoder(x)[:, 0])
        return result


class MultiheadVit(nn.Module):
    """A ViT of nn.MultiheadAttention, rows first, the last one with its averaged probabilities."""

    def __init__(self, dim: int = 32, heads: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 16, 16)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(dim, heads) for _ in range(depth))
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patches(x).flatten(2).permute(2, 0, 1)
        last = len(self.attentions) - 1
        for i, (norm, attention) in enumerate(zip(self.norms, self.attentions, strict=True)):
            y = norm(x)
            y, weights = attention(y, y, y, need_weights=i == last)
            x = x + y
        return self.head(x.mean(0)), weights


_WIDTH = {"embed_dim": 32, "depth": 2, "num_heads": 2}
_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": IMAGE,
    "patch_size": 16,
}
_PYTORCH = {"image_size": IMAGE, "dim": 32, "heads": 2, "mlp_dim": 64}

MODELS: Final[dict[str, Callable[[], nn.Module]]] = {
    "timm ViT, three images": _timm("vit_tiny_patch16_224", img_size=IMAGE, **_WIDTH),
    "timm DeiT, distilled": _timm("deit_tiny_distilled_patch16_224", img_size=IMAGE, **_WIDTH),
    "timm DINOv2 with registers": _timm("vit_small_patch14_reg4_dinov2", img_size=56, **_WIDTH),
    "timm SigLIP": _timm("vit_base_patch16_siglip_224", img_size=IMAGE, **_WIDTH),
    "timm EVA-02": _timm("eva02_tiny_patch14_224", img_size=56, **_WIDTH),
    "timm BEiT": _timm("beit_base_patch16_224", img_size=IMAGE, **_WIDTH),
    "timm CrossViT": _timm(
        "crossvit_9_240",
        img_size=IMAGE,
        img_scale=(1.0, 0.875),
        patch_size=(8, 14),
        embed_dim=(16, 32),
        depth=((1, 1, 0),),
        num_heads=(2, 2),
        mlp_ratio=(2, 2, 1),
    ),
    "timm CAFormer": _caformer,
    "timm Swin": _timm(
        "swin_tiny_patch4_window7_224",
        img_size=IMAGE,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 2),
    ),
    "timm Swin V2": _timm(
        "swinv2_tiny_window8_256",
        img_size=IMAGE,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 2),
    ),
    "timm PVT v2": _timm(
        "pvt_v2_b0", depths=(1, 1, 1, 1), embed_dims=(8, 16, 16, 16), num_heads=(1, 1, 2, 2)
    ),
    "timm Hiera": _timm(
        "hiera_tiny_224", img_size=(IMAGE, IMAGE), embed_dim=16, stages=(1, 1, 1, 1)
    ),
    "timm LeViT": _timm(
        "levit_128s",
        img_size=IMAGE,
        embed_dim=(32, 32, 32),
        key_dim=8,
        depth=(1, 1, 1),
        num_heads=2,
    ),
    "timm MobileViT": _timm("mobilevit_xxs"),
    "timm Twins": _timm(
        "twins_svt_small",
        img_size=IMAGE,
        embed_dims=(16, 16, 32, 32),
        num_heads=(2, 2, 2, 2),
        depths=(2, 2, 2, 2),
    ),
    "timm VOLO": _volo,
    "timm TNT": _timm(
        "tnt_s_patch16_224",
        img_size=IMAGE,
        embed_dim=32,
        inner_dim=8,
        depth=1,
        num_heads_outer=2,
        num_heads_inner=2,
    ),
    "timm NesT": _nest,
    "transformers CLIP vision": _transformers("CLIPVisionModel", **_SMALL),
    "transformers SigLIP vision": _transformers("SiglipVisionModel", **_SMALL),
    "transformers DINOv2 with registers": _transformers("Dinov2WithRegistersModel", **_SMALL),
    "transformers DINOv3": _transformers("DINOv3ViTModel", **_SMALL),
    "transformers PVT": _transformers(
        "PvtForImageClassification",
        image_size=IMAGE,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
    ),
    "transformers Hiera": _transformers(
        "HieraForImageClassification",
        image_size=[IMAGE, IMAGE],
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
    ),
    "transformers LeViT": _transformers(
        "LevitForImageClassification",
        image_size=IMAGE,
        hidden_sizes=[32, 32, 32],
        key_dim=[8, 8, 8],
        depths=[1, 1, 1],
        num_attention_heads=[2, 2, 2],
    ),
    "vit-pytorch CrossViT": _vit_pytorch(
        "cross_vit",
        "CrossViT",
        image_size=IMAGE,
        sm_dim=16,
        lg_dim=32,
        sm_patch_size=8,
        lg_patch_size=16,
        sm_enc_depth=1,
        lg_enc_depth=1,
        sm_enc_heads=2,
        lg_enc_heads=2,
        sm_enc_mlp_dim=32,
        lg_enc_mlp_dim=32,
        cross_attn_depth=1,
        cross_attn_heads=2,
        depth=1,
    ),
    "vit-pytorch LeViT": _vit_pytorch(
        "levit", "LeViT", image_size=IMAGE, dim=(32, 32), depth=1, heads=2, mlp_mult=2, stages=2
    ),
    "vit-pytorch T2T": _vit_pytorch(
        "t2t",
        "T2TViT",
        image_size=IMAGE,
        dim=32,
        depth=1,
        heads=2,
        mlp_dim=64,
        t2t_layers=((7, 4), (3, 2)),
    ),
    "vit-pytorch patch merger": _vit_pytorch(
        "vit_with_patch_merger",
        "ViT",
        patch_size=16,
        depth=2,
        patch_merge_layer=1,
        patch_merge_num_tokens=4,
        **_PYTORCH,
    ),
    "vit-pytorch PiT": _vit_pytorch(
        "pit", "PiT", image_size=IMAGE, patch_size=8, dim=32, depth=(1, 1), heads=2, mlp_dim=64
    ),
    "vit-pytorch Fourier": _vit_pytorch(
        "simple_vit_with_fft", "SimpleViT", patch_size=16, freq_patch_size=16, depth=1, **_PYTORCH
    ),
    "torch TransformerEncoder": TorchEncoderVit,
    "torch MultiheadAttention": MultiheadVit,
    "Super Token attention": super_tokens.build,
}

BATCH: Final = {"timm ViT, three images": 3}
SIDE: Final = {"timm DINOv2 with registers": 56, "timm EVA-02": 56}
