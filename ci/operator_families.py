"""Lists families of Vision Transformers, whose operators ``operator_table.py`` tries.

``FAMILIES`` names each with what builds it: small, with weights drawn under a seed, from timm,
transformers, torchvision, vit-pytorch or open_clip. What is left out of a name is the library's own
default.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, ...]]
Builder = Callable[[], Built]

#: Names of timm's models, each with the side of its images.
_TIMM: Final = {
    "aimv2_large_patch14_224": 224,
    "bat_resnext26ts": 256,
    "beit3_base_patch16_224": 224,
    "beit_base_patch16_224": 224,
    "botnet26t_256": 256,
    "cait_xxs24_224": 224,
    "caformer_s18": 128,
    "coat_lite_tiny": 224,
    "coat_tiny": 224,
    "coatnet_nano_rw_224": 224,
    "convformer_s18": 128,
    "convit_tiny": 224,
    "crossvit_tiny_240": 240,
    "csatv2": 512,
    "davit_tiny": 224,
    "deit3_small_patch16_224": 224,
    "deit_tiny_distilled_patch16_224": 224,
    "edgenext_xx_small": 128,
    "efficientformer_l1": 224,
    "efficientformerv2_s0": 224,
    "efficientvit_b0": 128,
    "efficientvit_m0": 224,
    "eva02_tiny_patch14_224": 224,
    "fastvit_t8": 256,
    "flexivit_small": 240,
    "focalnet_tiny_srf": 224,
    "gcvit_xxtiny": 224,
    "gmixer_12_224": 224,
    "gmlp_ti16_224": 224,
    "halonet26t": 256,
    "hiera_tiny_224": 224,
    "hieradet_small": 224,
    "lambda_resnet26t": 256,
    "levit_128s": 224,
    "maxvit_nano_rw_256": 256,
    "maxxvit_rmlp_nano_rw_256": 256,
    "mixer_s16_224": 224,
    "mobilenetv4_hybrid_medium": 128,
    "mobilevit_xxs": 128,
    "mobilevitv2_050": 128,
    "mvitv2_tiny": 224,
    "naflexvit_base_patch16_gap": 384,
    "nest_tiny": 224,
    "nextvit_small": 224,
    "pit_ti_224": 224,
    "poolformer_s12": 128,
    "poolformerv2_s12": 128,
    "pvt_v2_b0": 128,
    "repvit_m0_9": 128,
    "resmlp_12_224": 224,
    "sam2_hiera_tiny": 224,
    "sequencer2d_s": 224,
    "shvit_s1": 224,
    "swiftformer_xs": 224,
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_cr_tiny_224": 224,
    "swinv2_tiny_window8_256": 256,
    "tiny_vit_5m_224": 224,
    "tnt_s_patch16_224": 224,
    "twins_pcpvt_small": 224,
    "twins_svt_small": 224,
    "visformer_tiny": 224,
    "vit_base_patch16_siglip_gap_224": 224,
    "vit_medium_patch16_reg4_gap_256": 256,
    "vit_pe_core_tiny_patch16_384": 384,
    "vit_relpos_small_patch16_224": 224,
    "vit_small_patch14_reg4_dinov2": 518,
    "vit_small_patch16_dinov3": 256,
    "vit_small_patch16_rope_ape_224": 224,
    "vit_small_patch16_rope_mixed_224": 224,
    "vit_small_resnet26d_224": 224,
    "vit_srelpos_small_patch16_224": 224,
    "vit_tiny_patch16_224": 224,
    "vitamin_small_224": 224,
    "volo_d1_224": 224,
    "xcit_nano_12_p16_224": 224,
}
#: Models of transformers, each with what its configuration takes beside ``_SMALL``.
_TRANSFORMERS: Final[dict[str, dict[str, Any]]] = {
    "ASTModel": {"max_length": 128},
    "Aimv2VisionModel": {},
    "BeitModel": {},
    "CLIPVisionModel": {},
    "DPTModel": {"is_hybrid": False, "backbone_out_indices": [0, 1, 1, 1]},
    "Data2VecVisionModel": {},
    "DeiTModel": {},
    "Dinov2Model": {"out_indices": None},
    "Dinov2WithRegistersModel": {},
    "DINOv3ViTModel": {},
    "FocalNetModel": {"embed_dim": 16, "depths": [1, 1], "focal_levels": [2, 2]},
    "GroupViTVisionModel": {"image_size": 224},
    "HieraModel": {"embed_dim": 16, "depths": [1, 1, 1, 1], "image_size": [64, 64]},
    "IJepaModel": {},
    "LevitModel": {
        "hidden_sizes": [32, 32, 32], "key_dim": [8, 8, 8], "depths": [1, 1, 1],
        "num_attention_heads": [2, 2, 2],
    },
    "MobileViTModel": {},
    "MobileViTV2Model": {},
    "OwlViTVisionModel": {},
    "PoolFormerModel": {},
    "PvtModel": {
        "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 16],
        "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2],
    },
    "PvtV2Model": {
        "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 16],
        "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2],
    },
    "SamVisionModel": {"global_attn_indexes": [1]},
    "SegformerModel": {
        "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 16],
        "num_attention_heads": [1, 1, 2, 2],
    },
    "SiglipVisionModel": {},
    "Siglip2VisionModel": {},
    "SwiftFormerModel": {"image_size": 224},
    "SwinModel": {
        "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4,
        "num_attention_heads": [2, 2],
    },
    "Swinv2Model": {
        "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4,
        "num_attention_heads": [2, 2],
    },
    "TimesformerModel": {"num_frames": 2},
    "VideoMAEModel": {"num_frames": 2},
    "ViTMSNModel": {},
    "ViTModel": {},
    "VitDetModel": {"pretrain_image_size": 64},
    "VivitModel": {"num_frames": 2},
    "YolosModel": {"image_size": [64, 64]},
}  # fmt: skip
_SMALL: Final = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
}
_VIT: Final = {"image_size": 64, "num_classes": 10, "dim": 32, "heads": 2, "mlp_dim": 64}
_DEEP: Final = {**_VIT, "patch_size": 16, "depth": 2}
#: Modules and classes of vit-pytorch, with their arguments.
_VIT_PYTORCH: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("ats_vit", "ViT"): {**_DEEP, "max_tokens_per_depth": (8, 4)},
    ("cait", "CaiT"): {**_DEEP, "cls_depth": 1},
    ("cct", "CCT"): {
        "img_size": 64, "num_classes": 10, "embedding_dim": 32, "num_layers": 2, "num_heads": 2,
        "positional_embedding": "learnable",
    },
    ("cross_vit", "CrossViT"): {
        "image_size": 64, "num_classes": 10, "sm_dim": 16, "lg_dim": 32, "sm_patch_size": 8,
        "lg_patch_size": 16, "depth": 1,
    },
    ("crossformer", "CrossFormer"): {
        "num_classes": 10, "dim": (32, 32, 64, 64), "depth": (1, 1, 1, 1),
        "global_window_size": (4, 2, 2, 1), "local_window_size": 2,
    },
    ("cvt", "CvT"): {"num_classes": 10, "s3_depth": 1},
    ("deepvit", "DeepViT"): _DEEP,
    ("jumbo_vit", "JumboViT"): {**_DEEP, "num_jumbo_cls": 1, "jumbo_cls_k": 2, "jumbo_ff_mult": 2},
    ("max_vit", "MaxViT"): {
        "num_classes": 10, "dim_conv_stem": 16, "dim": 16, "dim_head": 8, "depth": (1, 1),
        "window_size": 4,
    },
    ("mobile_vit", "MobileViT"): {
        "image_size": (64, 64), "dims": [24, 32, 40], "num_classes": 10,
        "channels": [8, 8, 16, 16, 24, 24, 32, 32, 40, 40, 64],
    },
    ("nest", "NesT"): {
        "image_size": 64, "patch_size": 4, "num_classes": 10, "dim": 16, "heads": 2,
        "num_hierarchies": 2, "block_repeats": (1, 1),
    },
    ("normalized_vit", "nViT"): {**_DEEP, "dim_head": 16},
    ("parallel_vit", "ViT"): _DEEP,
    ("pit", "PiT"): {**_VIT, "patch_size": 8, "depth": (1, 1)},
    ("regionvit", "RegionViT"): {
        "dim": (16, 16, 32, 32), "depth": (1, 1, 1, 1), "window_size": 2, "num_classes": 10,
    },
    ("rvt", "RvT"): _DEEP,
    ("scalable_vit", "ScalableViT"): {
        "num_classes": 10, "dim": 16, "heads": (2, 2), "depth": (1, 1), "ssa_dim_key": (8, 8),
        "reduction_factor": (4, 2), "window_size": (4, None),
    },
    ("sep_vit", "SepViT"): {
        "num_classes": 10, "dim": 16, "dim_head": 8, "heads": (2, 2), "depth": (1, 1),
    },
    ("simple_flash_attn_vit", "SimpleViT"): _DEEP,
    ("simple_vit", "SimpleViT"): _DEEP,
    ("simple_vit_with_fft", "SimpleViT"): {**_DEEP, "freq_patch_size": 16},
    ("simple_vit_with_register_tokens", "SimpleViT"): _DEEP,
    ("t2t", "T2TViT"): {**_VIT, "depth": 1, "t2t_layers": ((7, 4), (3, 2))},
    ("vit", "ViT"): _DEEP,
    ("vit_for_small_dataset", "ViT"): _DEEP,
    ("vit_with_patch_dropout", "ViT"): {**_DEEP, "patch_dropout": 0.25},
    ("vit_with_patch_merger", "ViT"): {
        **_DEEP, "patch_merge_layer": 1, "patch_merge_num_tokens": 4,
    },
    ("xcit", "XCiT"): {**_DEEP, "cls_depth": 1},
}  # fmt: skip


def _timm(name: str, side: int) -> Builder:
    def build() -> Built:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10)
        return model, (torch.randn(1, 3, side, side),)

    return build


def _transformers(name: str, options: dict[str, Any]) -> Builder:
    def build() -> Built:
        import transformers

        kind: Any = getattr(transformers, name)
        config = kind.config_class(**{**_SMALL, **options})
        config.return_dict = True
        model = kind(config)
        side = getattr(config, "image_size", 64)
        height, width = side if isinstance(side, list | tuple) else (side, side)
        if name == "ASTModel":
            return model, (torch.randn(1, 128, config.num_mel_bins),)
        if name == "Siglip2VisionModel":
            patches = torch.randn(1, 16, 3 * config.patch_size**2)
            return model, (patches, torch.ones(1, 16, dtype=torch.int64), torch.tensor([[4, 4]]))
        frames = getattr(config, "num_frames", None)
        lead = (1,) if frames is None else (1, frames)
        return model, (torch.randn(*lead, 3, height, width),)

    return build


def _vit_pytorch(module: str, name: str, options: dict[str, Any]) -> Builder:
    side = 56 if module == "sep_vit" else 64  # its windows are of 7, whatever is asked for

    def build() -> Built:
        kind: Any = getattr(importlib.import_module(f"vit_pytorch.{module}"), name)
        return kind(**options), (torch.randn(1, 3, side, side),)

    return build


def _torchvision(name: str, side: int) -> Builder:
    def build() -> Built:
        import torchvision

        return getattr(torchvision.models, name)(num_classes=10), (torch.randn(1, 3, side, side),)

    return build


def _open_clip(name: str) -> Builder:
    def build() -> Built:
        import open_clip

        model: Any = open_clip.create_model(name)
        return model.visual, (torch.randn(1, 3, 224, 224),)

    return build


FAMILIES: Final[dict[str, Builder]] = {
    **{f"transformers {name}": _transformers(name, o) for name, o in _TRANSFORMERS.items()},
    **{f"vit-pytorch {key[0]}": _vit_pytorch(*key, o) for key, o in _VIT_PYTORCH.items()},
    "torchvision vit_b_16": _torchvision("vit_b_16", 224),
    "torchvision swin_t": _torchvision("swin_t", 64),
    "torchvision swin_v2_t": _torchvision("swin_v2_t", 64),
    "torchvision maxvit_t": _torchvision("maxvit_t", 224),
    "open_clip ViT-B-32": _open_clip("ViT-B-32"),
    "open_clip coca_ViT-B-32": _open_clip("coca_ViT-B-32"),
    **{f"timm {name}": _timm(name, side) for name, side in _TIMM.items()},
}
