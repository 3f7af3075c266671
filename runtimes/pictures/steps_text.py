"""Reads the steps of a preprocessing from a text: ``size=224,crop=0.9,mean=imagenet``.

size    224, or 224x320: height and width of the input; by default the model's
crop    the part of the resized side that is kept, 1 by default: 0.9 resizes to 224 / 0.9 first
mode    center (default), squash or border, as timm calls them
mean    imagenet, half, inception, clip, openai or none; or three numbers, 0.5/0.5/0.5
std     the same; by default the one of the set that mean names
interpolation    bicubic by default
"""

from __future__ import annotations

import math
import re
from typing import Final

from tokexport.runtimes.errors import PreprocessingError
from tokexport.runtimes.pictures.preprocessing import Preprocessing
from tokexport.runtimes.pictures.steps_reader import CENTER, INTERPOLATIONS, MODES

_HALF: Final = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP: Final = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
#: Mean and deviation of each named set; that of ``none`` leaves 0 … 1.
NAMED: Final = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": _HALF,
    "inception": _HALF,
    "clip": _CLIP,
    "openai": _CLIP,
    "none": (None, None),
}
_KEYS: Final = ("size", "crop", "mode", "mean", "std", "interpolation")
_EXAMPLE: Final = "size=224,crop=0.9,mean=imagenet,interpolation=bicubic"
_LARGEST: Final = 1 << 14


def parse_preprocessing(text: str, size: tuple[int, int] | None = None) -> Preprocessing:
    """Reads the steps of a preprocessing from a text.

    Args:
        text: Steps with commas between: ``size=224,crop=0.9,mean=imagenet,interpolation=bicubic``.
        size: Height and width of the input, where the text says none.

    Raises:
        PreprocessingError: A step is unknown, twice there or not of its kind; or the mean or the
            size is missing.
    """
    given = _pairs(text)
    if "mean" not in given:
        raise PreprocessingError(
            f"The preprocessing '{text}' says no mean, and a wrong one costs accuracy in silence.",
            fix=f"Add mean=, one of {', '.join(NAMED)}, or three numbers: {_EXAMPLE}",
        )
    size = _size(given["size"]) if "size" in given else size
    if size is None:
        raise PreprocessingError(
            f"The preprocessing '{text}' says no size, and neither does the model.",
            fix="Add size=, the height and width of the model's input: size=224",
        )
    pct = _share(given.get("crop", "1"))
    mode = _one_of("mode", given.get("mode", CENTER), MODES)
    resized = math.floor(size[0] / pct), math.floor(size[1] / pct)
    mean, std = _statistics(given)
    return Preprocessing(
        size=size,
        resize=resized[0] if mode == CENTER and resized[0] == resized[1] else resized,
        crop=size,
        crop_pct=pct,
        crop_mode=mode,
        interpolation=_one_of(
            "interpolation", given.get("interpolation", "bicubic"), INTERPOLATIONS
        ),
        rescale_factor=1 / 255,
        mean=mean,
        std=std,
        origin=f"--preprocess {text}",
    )


def _pairs(text: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in text.split(","):
        key, found, value = (piece.strip() for piece in part.partition("="))
        if not found or key not in _KEYS or not value:
            raise PreprocessingError(
                f"'{part.strip()}' is no step of a preprocessing.",
                fix=f"Pass some of {', '.join(f'{one}=' for one in _KEYS)}: {_EXAMPLE}",
            )
        if key in given:
            raise PreprocessingError(f"The preprocessing says {key} twice.", fix="Say it once.")
        given[key] = value
    return given


def _statistics(
    given: dict[str, str],
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Returns mean and deviation; that of the named set where only the mean is given."""
    if "std" not in given:
        if given["mean"] not in NAMED:
            raise PreprocessingError(
                "The preprocessing says a mean and no standard deviation.",
                fix=f"Add std=, one of {', '.join(NAMED)}, or three numbers: std=0.5/0.5/0.5",
            )
        return NAMED[given["mean"]]
    named = [NAMED.get(given[key], (None, None))[place] for place, key in enumerate(_STATISTICS)]
    found = [
        one if given[key] in NAMED else _numbers(key, given[key])
        for one, key in zip(named, _STATISTICS, strict=True)
    ]
    return found[0], found[1]


_STATISTICS: Final = ("mean", "std")
_DIVIDE: Final = "Divide mean and std by 255: mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
#: Colours from 0 to 1 deviate by at most 0.5; a model may take them scaled by other numbers.
_LEAST_DEVIATION, _MOST_DEVIATION = 1e-6, 4.0


def _numbers(key: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split("/"))
    except ValueError:
        values = ()
    if len(values) != 3 or not all(map(math.isfinite, values)) or (key == "std" and 0 in values):
        raise PreprocessingError(
            f"{key}={text} is neither a named set nor three numbers"
            + (" other than 0." if key == "std" else "."),
            fix=f"Pass one of {', '.join(NAMED)}, or {key}=0.5/0.5/0.5",
        )
    if key == "mean" and not all(0 <= value <= 1 for value in values):
        raise PreprocessingError(
            f"mean={text} is no mean of a picture, whose colours go from 0 to 1.",
            fix=_DIVIDE,
        )
    if key == "std" and not all(_LEAST_DEVIATION <= value <= _MOST_DEVIATION for value in values):
        raise PreprocessingError(
            f"std={text} is no deviation of a picture, whose colours go from 0 to 1.",
            fix=_DIVIDE,
        )
    return values


def read_sides(text: str) -> list[int]:
    """Returns the numbers of a text such as ``480x640``; 0 of a part that is no whole number."""
    return [int(part) if re.fullmatch("[0-9]{1,9}", part) else 0 for part in text.split("x")]


def _size(text: str) -> tuple[int, int]:
    sides = read_sides(text)
    if len(sides) > 2 or not all(1 <= side <= _LARGEST for side in sides):
        raise PreprocessingError(
            f"size={text} is no size of a picture.",
            fix="Pass one number of pixels, or height and width: size=224, size=224x320",
        )
    return sides[0], sides[-1]


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 1:
        raise PreprocessingError(
            f"crop={text} is no share of the resized picture.",
            fix="Pass a number from 0.01 to 1: crop=0.9 keeps nine tenths of its side.",
        )
    return value


def _one_of(key: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise PreprocessingError(
            f"{key}={value} is unknown.", fix=f"Pass one of {', '.join(known)}."
        )
    return value
