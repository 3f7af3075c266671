"""Reads Fashion-MNIST, and makes its small grey images inputs of DINOv2.

The data are in the idx format of Yann LeCun's MNIST: two zero bytes, the type (8: bytes), the
number of axes, each axis as four bytes, then the values.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
#: What DINOv2 was trained with: the mean and the spread of ImageNet's channels.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def images(folder: Path, part: str) -> np.ndarray:
    """Returns the images of ``train`` or ``t10k``, (N, 28, 28) bytes."""
    return _read(folder / f"{part}-images-idx3-ubyte.gz", 3)


def labels(folder: Path, part: str) -> np.ndarray:
    """Returns their classes, (N,) int64."""
    return _read(folder / f"{part}-labels-idx1-ubyte.gz", 1).astype(np.int64)


def _read(path: Path, axes: int) -> np.ndarray:
    data = gzip.decompress(path.read_bytes())
    if data[:4] != bytes([0, 0, 8, axes]):
        raise ValueError(f"{path} holds no bytes of {axes} axes.")
    shape = np.frombuffer(data, ">u4", axes, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(*map(int, shape))


def pixels(grey: np.ndarray, side: int) -> np.ndarray:
    """Returns images as DINOv2 takes them: bicubic to the side, three channels, normalised.

    Args:
        grey: (N, 28, 28) bytes.
        side: Height and width of the result.

    Returns:
        (N, 3, side, side) float32.
    """
    values = torch.from_numpy(grey.astype(np.float32))[:, None] / 255
    values = F.interpolate(values, size=(side, side), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(one)[:, None, None] for one in (MEAN, STD))
    found: np.ndarray = ((values.clamp(0, 1) - mean) / std).numpy()
    return found
