"""Compiles the small bundles that are damaged: a model with one merge, for each target."""

from __future__ import annotations

import sys
from pathlib import Path

from attacks.kinds import ROOT

_TARGETS = {"ort": "ort", "openvino": "openvino", "trt-rtx": "trt"}


def compile_bundle(target: str, output: Path) -> None:
    """Compiles one, for example ``ort int8`` or ``trt-rtx``, into a new folder."""
    sys.path.insert(0, str(ROOT / "examples"))
    import numpy as np
    import torch
    from digits_vit import DigitsViT

    import tokexport

    torch.manual_seed(0)
    model = DigitsViT(width=8, heads=2, merge=(3, 0)).eval()
    output.parent.mkdir(parents=True, exist_ok=True)
    images = output.parent / "images.npz"
    np.savez(images, image=np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32))
    name, _, precision = target.partition(" ")
    tokexport.compile(
        model,
        torch.zeros(4, 1, 8, 8),
        _TARGETS[name],
        output=output,
        inputs=str(images),
        precision=precision or "fp32",
        threads=1,
        timed=False,
    )
