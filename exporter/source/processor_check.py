"""Holds the steps that were read from an image processor to what the processor does."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Final

import numpy as np

from tokexport.runtimes.errors import PreprocessingError
from tokexport.runtimes.pictures.pillow import pillow_image
from tokexport.runtimes.pictures.preprocessing import Preprocessing

#: Height and width of the pictures that are compared; the second where steps fit a square alone.
_SIZES: Final = ((150, 210), (180, 180))
#: Levels of 255 that a value may be off, and the share of the values that may be farther off:
#: resizing in torchvision is two levels off Pillow, and one without a low-pass filter a few.
_LEVELS: Final = 3.0
_SHARE: Final = 0.05
#: The most pixels of a resized or cropped picture; larger ones are not compared.
_MOST_PIXELS: Final = 1 << 24


def held_to_processor(processor: Any, steps: Preprocessing) -> Preprocessing:
    """Returns the steps, with the processor among ``other_steps`` where it does otherwise.

    Args:
        processor: An image processor of transformers.
        steps: What was read from its configuration.
    """
    found = None if steps.other_steps else _applied(steps)
    if found is None:
        return steps
    pixels, ours = found
    kind = type(processor).__name__
    try:
        theirs = _processed(processor, pixels)
    except MemoryError:
        raise
    except Exception as error:  # what its classes raise has no common class
        why = " ".join(str(error).split())[:100]
        return replace(steps, other_steps=(f"those of {kind}, which cannot be run ({why})",))
    if theirs.size == ours.size and _share_off(steps, ours, theirs.reshape(ours.shape)) <= _SHARE:
        return steps
    return replace(steps, other_steps=(f"what {kind} does beside its configuration",))


def _applied(steps: Preprocessing) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns a picture, and what the steps make of it; None where they take none of ours."""
    for size in _SIZES:
        pixels = _picture(*size)
        try:
            Preprocessing.from_json(steps.to_json()).check()
            cut = steps.cut(*size)
            if max(cut.size[0] * cut.size[1], cut.crop[0] * cut.crop[1]) > _MOST_PIXELS:
                return None
            return pixels, steps.apply(pixels)
        except PreprocessingError:
            continue
    return None


def _processed(processor: Any, pixels: np.ndarray) -> np.ndarray:
    image = pillow_image().fromarray(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = processor(image, return_tensors="pt")["pixel_values"]
    return np.asarray(found, dtype=np.float64)


def _share_off(steps: Preprocessing, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the share of values that are too many levels of 255 apart."""
    level = steps.rescale_factor or 1.0
    std = np.array(steps.std or (1.0,) * 3)[:, None, None]
    return float((np.abs(ours - theirs) * np.abs(std / level) > _LEVELS).mean())


def _picture(height: int, width: int) -> np.ndarray:
    """Draws a picture (H, W, 3) that no crop, turn or exchange of channels leaves as it is."""
    rows, columns = np.mgrid[0:height, 0:width]
    across, down = columns / width, rows / height
    colours = np.stack([255 * across, 255 * down, 128 * (1 - across) + 100 * down], axis=-1)
    grain = np.random.default_rng(0).integers(-24, 25, colours.shape)
    return np.clip(colours + grain, 0, 255).astype(np.uint8)
