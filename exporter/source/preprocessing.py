"""Reads how an image becomes the input of a model, from the model's source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokexport.exporter.errors import SourceError
from tokexport.runtimes.pictures.preprocessing import Preprocessing
from tokexport.runtimes.pictures.steps_reader import CENTER, MODES
from tokexport.runtimes.pictures.steps_text import NAMED

if TYPE_CHECKING:
    from torch import nn

# PIL's numbering, which preprocessor_config.json uses in "resample".
_RESAMPLE: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_BYTE: Final = 1 / 255
#: What timm takes where a configuration has no statistics.
_MEAN, _STD = NAMED["imagenet"]
#: The steps of transformers' image processors that are read, and what leaves an image as it is.
_STEPS: Final = (
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"),
    "do_reduce_labels",
)
#: What changes one of these steps, in some classes.
_CHANGE_OTHERS: Final = (
    *("crop_to_patches", "ensure_multiple_of", "keep_aspect_ratio", "rescale_offset"),
    *("include_top", "size_divisor"),
)
#: ConvNext: from this size on the image is squashed; below, the crop is this share of it.
_SQUASHED_FROM: Final = 384
_CONVNEXT_CROP: Final = 224 / 256
#: LeViT: how much larger than asked for the shorter side becomes.
_LEVIT_SCALE: Final = 256 / 224


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
    mode = str(config.get("crop_mode"))
    mode = mode if mode in MODES else CENTER
    resize: tuple[int, int] | int
    if mode == CENTER and height == width:
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
        mean=_numbers(config.get("mean") or _MEAN),
        std=_numbers(config.get("std") or _STD),
        origin="timm pretrained_cfg",
    )


def makes_one_size(config: Mapping[str, Any]) -> bool:
    """Returns whether an image processor of transformers brings every picture to one size.

    Args:
        config: Its ``to_dict()``.
    """
    if config.get("do_center_crop", False) and config.get("crop_size") is not None:
        return True
    size = config.get("size")
    if size is None or not config.get("do_resize", True):
        return False
    # {"longest_edge": n} keeps the ratio of the sides; an empty object says nothing, and is damaged
    return not isinstance(size, Mapping) or not size or bool({"height", "shortest_edge"} & {*size})


def transformers_preprocessing(config: Mapping[str, Any], path: Path) -> Preprocessing:
    """Reads the steps from the configuration of an image processor of transformers.

    Args:
        config: Its ``to_dict()``: a file may leave out what its class has a default for.
        path: The file it was read from.

    Raises:
        SourceError: It has no size, or other steps.
    """
    try:
        resize, cut = _resize_and_crop(config)
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
            other_steps=_other_steps(config),
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise unreadable_preprocessing(path, str(error)) from error


def _resize_and_crop(
    config: Mapping[str, Any],
) -> tuple[tuple[int, int] | int | None, tuple[int, int] | None]:
    """Returns what an image is resized to, and the part that is cut from its middle."""
    resize = _size(config.get("size")) if config.get("do_resize", True) else None
    crop = _pair(_size(config.get("crop_size") if config.get("do_center_crop", False) else None))
    kind = str(config.get("image_processor_type", ""))
    if isinstance(resize, int) and kind.startswith("ConvNext"):
        if resize >= _SQUASHED_FROM:
            return (resize, resize), crop
        return int(resize / float(config.get("crop_pct") or _CONVNEXT_CROP)), (resize, resize)
    if isinstance(resize, int) and kind.startswith("Levit"):
        return int(_LEVIT_SCALE * resize), crop
    return resize, crop


def _other_steps(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the steps of an image processor beside resize, crop, scale and normalise."""
    steps = [name for name in sorted(config) if name.startswith("do_") and config[name] is True]
    found = [name for name in steps if name not in _STEPS]
    found += [name for name in _CHANGE_OTHERS if config.get(name) is True or _over_1(config, name)]
    size = config.get("size")
    if isinstance(size, Mapping) and "height" not in size and "longest_edge" in size:
        found.append("size.longest_edge")
    return tuple(found)


def _over_1(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name)
    return isinstance(value, int | float) and value > 1


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
