"""Reads how an image becomes the input of a model, from the model's source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokexport.exporter.errors import SourceError

if TYPE_CHECKING:
    from torch import nn

# PIL's numbering, which preprocessor_config.json uses in "resample".
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_BYTE = 1 / 255


@dataclass(frozen=True)
class Preprocessing:
    """The steps from an image of 8 bits a channel to the model's input, in this order.

    Attributes:
        size: Height and width of the input.
        resize: What the image is resized to first: (height, width), or one number for the shorter
            side; None when it is not resized.
        crop: Height and width of the part cut from the middle after it; None when none is cut.
        crop_pct: The side of the crop over that of the resized image, as timm gives it.
        crop_mode: How timm resizes and crops: ``center``, ``squash`` or ``border``.
        interpolation: ``bicubic``, ``bilinear`` and so on.
        rescale_factor: What the bytes are multiplied by; None when they stay as they are.
        mean: Subtracted from each channel after it; None when nothing is.
        std: Each channel is divided by it; None when it is not.
        origin: Where this was found.
    """

    size: tuple[int, int]
    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    crop_pct: float | None
    crop_mode: str | None
    interpolation: str | None
    rescale_factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    origin: str

    def to_json(self) -> dict[str, Any]:
        """Returns the steps as plain values, fit for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


def timm_input_size(model: nn.Module) -> tuple[int, int, int] | None:
    """Returns (channels, height, width) of a model that timm built; None for any other."""
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, Mapping) or len(config.get("input_size") or ()) != 3:
        return None
    channels, height, width = (int(number) for number in config["input_size"])
    # A size asked for at creation is kept by the patch embedding and not by the configuration.
    embedding = getattr(model, "patch_embed", None)
    asked = getattr(embedding, "img_size", None)
    if isinstance(asked, (tuple, list)) and len(asked) == 2:
        height, width = (int(number) for number in asked)
    projection = getattr(getattr(embedding, "proj", None), "in_channels", channels)
    return (int(projection), height, width)


def timm_preprocessing(model: nn.Module) -> Preprocessing | None:
    """Reads the steps from a timm model's ``pretrained_cfg``, as timm's own transforms do."""
    size = timm_input_size(model)
    if size is None:
        return None
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    height, width = size[1:]
    crop_pct = float(config.get("crop_pct") or 0.875)
    mode = str(config.get("crop_mode") or "center")
    resize: tuple[int, int] | int
    if mode == "center" and height == width:
        resize = math.floor(height / crop_pct)
    else:
        resize = (math.floor(height / crop_pct), math.floor(width / crop_pct))
    return Preprocessing(
        size=(height, width),
        resize=resize,
        crop=(height, width),
        crop_pct=crop_pct,
        crop_mode=mode,
        interpolation=str(config.get("interpolation") or "bicubic"),
        rescale_factor=_BYTE,
        mean=_numbers(config.get("mean")),
        std=_numbers(config.get("std")),
        origin="timm pretrained_cfg",
    )


def transformers_preprocessing(config: Mapping[str, Any], path: Path) -> Preprocessing:
    """Reads the steps from the configuration of an image processor of transformers.

    Args:
        config: Its ``to_dict()``: a file may leave out what its class has a default for.
        path: The file it was read from.

    Raises:
        SourceError: It has no size, or other steps.
    """
    try:
        resize = _size(config.get("size")) if config.get("do_resize", True) else None
        crop = config.get("crop_size") if config.get("do_center_crop", False) else None
        cut = _pair(_size(crop))
        size = cut or _pair(resize)
        if size is None:
            raise ValueError("it gives no size")
        normalize = config.get("do_normalize", True)
        rescale = config.get("do_rescale", True)
        resample = config.get("resample")
        return Preprocessing(
            size=size,
            resize=resize,
            crop=cut,
            crop_pct=None,
            crop_mode=None,
            interpolation=None if resample is None else dict(enumerate(_RESAMPLE))[int(resample)],
            rescale_factor=float(config.get("rescale_factor", _BYTE)) if rescale else None,
            mean=_numbers(config.get("image_mean")) if normalize else None,
            std=_numbers(config.get("image_std")) if normalize else None,
            origin=path.name,
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise unreadable_preprocessing(path, str(error)) from error


def unreadable_preprocessing(path: Path, why: str) -> SourceError:
    """Returns the error for a file whose preprocessing cannot be read."""
    return SourceError(
        "The preprocessing of the model cannot be read.",
        where=f"{path} ({why})",
        fix="Save it again (image_processor.save_pretrained(folder)), or take the file away.",
    )


def _size(value: Any) -> tuple[int, int] | int | None:
    """Reads a size: a number, {"shortest_edge": n} or {"height": h, "width": w}."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        if "height" in value:
            return (int(value["height"]), int(value["width"]))
        return int(value["shortest_edge"])
    return int(value)


def _pair(size: tuple[int, int] | int | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)
