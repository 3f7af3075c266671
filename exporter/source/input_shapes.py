"""Reads the image size of a model of timm, torchvision or transformers."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from tokexport.exporter.source.preprocessing import timm_input_size

if TYPE_CHECKING:
    from torch import nn

Shapes = dict[str, tuple[int, ...]]


def known_input_shapes(model: nn.Module) -> Shapes | None:
    """Returns the shape of a model's image, batch 1, by the name of forward's parameter.

    timm says it in ``pretrained_cfg`` and the patch embedding, transformers in ``config``,
    torchvision's ViT in ``image_size``. None where the model says nothing.
    """
    size = timm_input_size(model) or _torchvision_size(model)
    return _transformers_shapes(model) if size is None else {_first_name(model): (1, *size)}


def _first_name(model: nn.Module) -> str:
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return named[0] if named else "x"


def _torchvision_size(model: nn.Module) -> tuple[int, int, int] | None:
    """Returns (channels, height, width) of a ViT of torchvision."""
    size = getattr(model, "image_size", None)
    if not _is_of(model, "torchvision") or not isinstance(size, int):
        return None
    channels = int(getattr(getattr(model, "conv_proj", None), "in_channels", 3))
    return channels, size, size


def _transformers_shapes(model: nn.Module) -> Shapes | None:
    """Returns (1, channels, height, width) of ``pixel_values``, where the model has sizes."""
    config: Any = getattr(model, "config", None)
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None)
    if size is None or getattr(model, "main_input_name", "") != "pixel_values":
        return None
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return {"pixel_values": (1, int(getattr(config, "num_channels", 3)), int(height), int(width))}


def _is_of(model: nn.Module, package: str) -> bool:
    """Returns whether the model's class, or one of its bases, is of a package."""
    return any(kind.__module__.partition(".")[0] == package for kind in type(model).__mro__)
