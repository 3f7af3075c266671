"""Whole encoders as published repositories write them, each in a spelling of its own.

``MODELS`` names every one; ``build(batch, seed)`` returns the module in evaluation mode and its
example inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from models.encoders import (
    decoder_pruner,
    dense_restore,
    diverse_pruner,
    image_text,
    mask_pruner,
    mask_units,
    neighbour_merge,
    policy_mask,
    query_detector,
    resampler,
    rotary_merger,
    video,
    window_merge,
)
from torch import Tensor, nn

Build = Callable[[int, int], tuple[nn.Module, tuple[Tensor, ...]]]

MODELS: Final[dict[str, Build]] = {
    "mask pruner": mask_pruner.build,
    "diverse pruner": diverse_pruner.build,
    "window merge": window_merge.build,
    "image and text": image_text.build,
    "video": video.build,
    "rotary merger": rotary_merger.build,
    "neighbour merge": neighbour_merge.build,
    "policy mask": policy_mask.build,
    "resampler": resampler.build,
    "mask units": mask_units.build,
    "query detector": query_detector.build,
    "dense restore": dense_restore.build,
    "decoder pruner": decoder_pruner.build,
}
