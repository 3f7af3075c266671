"""Vision towers of transformers that read a grid or shapes; tiny, with random weights."""

from __future__ import annotations

import torch
from helpers.torchvision_ops import define_torchvision_operators
from torch import Tensor, nn

Tower = tuple[nn.Module, dict[str, Tensor]]
GRIDS = torch.tensor([[1, 4, 6], [1, 4, 4]])
SIZES = {"hidden_size": 32, "intermediate_size": 48, "patch_size": 4}


def _packed(model: nn.Module) -> Tower:
    patches = torch.randn(40, 96, generator=torch.Generator().manual_seed(1))
    return model.eval(), {"hidden_states": patches, "grid_thw": GRIDS}


def qwen2_5_vl() -> Tower:
    """Windows in the first block, all tokens of an image in the second."""
    define_torchvision_operators()
    from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl, modeling_qwen2_5_vl

    own = {"window_size": 16, "out_hidden_size": 24, "fullatt_block_indexes": [1]}
    config = configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig(depth=2, num_heads=2, **SIZES, **own)
    torch.manual_seed(0)
    return _packed(modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel(config))


def qwen3_vl() -> Tower:
    """Positions resized to each grid."""
    define_torchvision_operators()
    from transformers.models.qwen3_vl import configuration_qwen3_vl, modeling_qwen3_vl

    own = {"out_hidden_size": 24, "num_position_embeddings": 36, "deepstack_visual_indexes": [0]}
    config = configuration_qwen3_vl.Qwen3VLVisionConfig(depth=2, num_heads=2, **SIZES, **own)
    torch.manual_seed(0)
    return _packed(modeling_qwen3_vl.Qwen3VLVisionModel(config))


def siglip2() -> Tower:
    """Images of three shapes, padded."""
    define_torchvision_operators()
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_patches": 16}
    torch.manual_seed(0)
    model = Siglip2VisionModel(Siglip2VisionConfig(**SIZES, **layers)).eval()
    shapes = torch.tensor([[3, 4], [4, 2], [2, 5]])
    patches = torch.randn(3, 12, 48, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(12) < shapes.prod(1, keepdim=True)).int()
    return model, {
        "pixel_values": patches,
        "pixel_attention_mask": mask,
        "spatial_shapes": shapes,
    }
