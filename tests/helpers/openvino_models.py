"""A small ViT that merges, as OpenVINO gets it, and images for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from digits_vit import DigitsViT
from helpers.graphs import emitted, lowered, rewrite

from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.inputs.batches import Batches

#: How often it merges.
MERGES = 2


def save_merging_vit(path: Path) -> Path:
    """Writes the lowered ONNX file."""
    torch.manual_seed(0)
    model = DigitsViT(merge=(3, 3, 0)).eval()
    onnx_model = emitted(rewrite(model, torch.rand(1, 1, 8, 8)))
    save_onnx(lowered(onnx_model, "openvino"), path)
    return path


def images(name: str) -> Batches:
    """Returns 16 images for the input of that name."""
    generator = np.random.default_rng(0)
    arrays = {name: generator.random((16, 1, 1, 8, 8), np.float32)}
    return Batches((name,), arrays, 16, None, "")
