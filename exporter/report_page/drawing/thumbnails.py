"""Makes small pictures of samples, as PNG in a data URI, with numpy alone."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Final

import numpy as np

from tokexport.runtimes.arrays import Array

#: Pixels along the longer side of a small picture.
_SIDE: Final = 112
_GREYS: Final = 1


def image_axes(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Returns the axes of channels, rows and columns of a batch of pictures; None of others."""
    if len(shape) != 4:
        return None
    if shape[1] in (1, 3):
        return 1, 2, 3
    return (3, 1, 2) if shape[3] in (1, 3) else None


def thumbnail(sample: Array, side: int = _SIDE) -> str:
    """Returns a sample as a small picture, its numbers spread from black to white.

    Args:
        sample: A picture (1, C, H, W) or (1, H, W, C) of 1 or 3 channels.
        side: The most pixels along a side.

    Returns:
        A data URI.
    """
    axes = image_axes(sample.shape)
    assert axes is not None
    pixels = np.transpose(sample[0], [axis - 1 for axis in (axes[1], axes[2], axes[0])])
    pixels = _smaller(pixels.astype(np.float64), side)
    finite = pixels[np.isfinite(pixels)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    spread = np.nan_to_num((pixels - low) / ((high - low) or 1.0), nan=0.0)
    return png_uri((np.clip(spread, 0, 1) * 255).round().astype(np.uint8))


def _smaller(pixels: Array, side: int) -> Array:
    """Averages squares of pixels (H, W, C) until no side is longer."""
    step = -(-max(pixels.shape[:2]) // side)
    rows, columns = (max(size // step, 1) for size in pixels.shape[:2])
    cut = pixels[: rows * step, : columns * step]
    down, across = cut.shape[0] // rows, cut.shape[1] // columns
    found: Array = cut.reshape(rows, down, columns, across, -1).mean(axis=(1, 3))
    return found


def png_uri(pixels: Array) -> str:
    """Returns pixels (H, W, 1 or 3) of 8 bits as a PNG in a data URI."""
    height, width, channels = pixels.shape
    rows = np.concatenate(
        [np.zeros((height, 1), np.uint8), pixels.reshape(height, width * channels)], axis=1
    )
    kind = 0 if channels == _GREYS else 2
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    file = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)
    return "data:image/png;base64," + base64.b64encode(file).decode("ascii")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
