"""Takes a picture to the input of a model: resize, crop from the middle, scale, normalise.

The sizes are rounded as the transforms of timm, torchvision and transformers round them, and the
resizing is Pillow's own::

    (H, W, 3) uint8  →  resized  →  crop from the middle  →  (x · rescale_factor − mean) / std
                                                          →  (3, h, w) float32
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from tokexport.runtimes.errors import PreprocessingError
from tokexport.runtimes.pictures.pillow import pillow_image

#: What timm calls its ways to resize and crop.
CENTER: Final = "center"
SQUASH: Final = "squash"
BORDER: Final = "border"
MODES: Final = (CENTER, SQUASH, BORDER)
INTERPOLATIONS: Final = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
#: The largest side of an input.
_LONGEST_SIDE: Final = 1 << 14
#: A resized picture of more pixels is not made whole, but only the part that the crop keeps.
_MOST_RESIZED: Final = 1 << 26
_PASS: Final = "Pass the steps with --preprocess, or preprocess the pictures by yourself."


@dataclass(frozen=True)
class Preprocessing:
    """The steps from an image of 8 bits a channel to the model's input, in this order.

    Attributes:
        size: Height and width of the input.
        resize: What the image is resized to first: (height, width), or one number for the shorter
            side; None when it is not resized.
        crop: Height and width of the part cut from the middle after it; None when none is cut.
        crop_pct: The side of the crop over that of the resized image, as timm gives it.
        crop_mode: How timm resizes and crops: ``center``, ``squash`` or ``border``; None rounds
            half a pixel of the crop's place down, as transformers does.
        interpolation: ``bicubic``, ``bilinear`` and so on; None is ``bilinear``.
        rescale_factor: What the bytes are multiplied by; None when they stay as they are.
        mean: Subtracted from each channel after it; None when nothing is.
        std: Each channel is divided by it; None when it is not.
        origin: Where this was found.
        other_steps: Further steps of the source that are not done here, by the source's names.
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
    other_steps: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the steps as plain values for JSON; ``other_steps`` only where it has some."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if key != "other_steps" or value
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Reads what ``to_json`` wrote, as ``preprocessing`` of a manifest holds it.

        Raises:
            PreprocessingError: A step is missing, or is not of its kind.
        """
        return _Reader(data).steps()

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the input (3, h, w) float32 of one picture, without the axis of samples.

        Args:
            pixels: (H, W, 3) uint8: red, green, blue.

        Raises:
            PreprocessingError: The steps do not give an input of ``size``, or are not all done
                here.
            RuntimeMissingError: Pillow is not installed.
        """
        return self.normalised(self.resized(pixels))

    def resized(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the part (h, w, 3) uint8 of a picture that the model sees, before it is scaled.

        Args:
            pixels: (H, W, 3) uint8.

        Raises:
            PreprocessingError: As of ``apply``.
            RuntimeMissingError: Pillow is not installed.
        """
        if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
            raise PreprocessingError(
                f"The pixels are {pixels.dtype} of shape {pixels.shape}.",
                fix="Give (H, W, 3) uint8: red, green, blue, as decode returns them.",
            )
        if not all(pixels.shape):
            raise PreprocessingError(
                f"The picture has no pixels: its shape is {pixels.shape}.", fix="Leave it out."
            )
        self._check_other_steps()
        made = self._resized_and_cropped(pixels)
        if made.shape[:2] != self.size:
            raise PreprocessingError(
                f"A picture of {_sides(pixels.shape)} becomes {_sides(made.shape)}, and the input "
                f"is {_sides(self.size)}: the steps cut nothing.",
                where=f"Found in: {self.origin}.",
                fix=_PASS,
            )
        return made

    def normalised(self, pixels: np.ndarray) -> np.ndarray:
        """Returns pixels (h, w, 3) uint8 scaled and normalised, (3, h, w) float32.

        Raises:
            PreprocessingError: There is not one mean and one deviation for each channel.
        """
        mean, std = self._statistics()
        levels = np.arange(256, dtype=np.float64) * (
            1.0 if self.rescale_factor is None else self.rescale_factor
        )
        tables = ((levels - np.array(mean)[:, None]) / np.array(std)[:, None]).astype(np.float32)
        found: np.ndarray = np.stack([tables[one][pixels[..., one]] for one in range(3)])
        return found

    def check(self) -> None:
        """Refuses steps that no picture can take, whatever its size.

        Raises:
            PreprocessingError: Not all steps are done here, or there is not one mean and one
                deviation for each channel.
        """
        self._check_other_steps()
        self._statistics()

    def _check_other_steps(self) -> None:
        if self.other_steps:
            raise PreprocessingError(
                "The model's own preprocessing has steps that are not done here: "
                f"{', '.join(self.other_steps)}.",
                where=f"Found in: {self.origin}.",
                fix=_PASS,
            )

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns mean and deviation of the channels, 0 and 1 where nothing says them."""
        mean, std = self.mean or (0.0,) * 3, self.std or (1.0,) * 3
        if len(mean) != 3 or len(std) != 3:
            raise PreprocessingError(
                f"A picture has 3 channels, and the mean has {len(mean)} and the deviation "
                f"{len(std)}.",
                where=f"Found in: {self.origin}.",
                fix=_PASS,
            )
        return mean, std

    def _resized_and_cropped(self, pixels: np.ndarray) -> np.ndarray:
        """Resizes whole and crops; of a very large resized picture only the crop is made."""
        height, width = self.resized_size(*pixels.shape[:2])
        crop = self.crop or (height, width)
        top, left = (self._start(*pair) for pair in zip((height, width), crop, strict=True))
        rows = max(top, 0), min(top + crop[0], height)
        columns = max(left, 0), min(left + crop[1], width)
        part = self._part(pixels, (height, width), rows, columns)
        if part.shape[:2] == crop:
            return part
        made = np.empty((*crop, 3), np.uint8)
        made[:] = self._fill()
        made[rows[0] - top :, columns[0] - left :][: part.shape[0], : part.shape[1]] = part
        return made

    def _part(
        self,
        pixels: np.ndarray,
        size: tuple[int, int],
        rows: tuple[int, int],
        columns: tuple[int, int],
    ) -> np.ndarray:
        """Returns rows and columns of the picture at a size."""
        height, width = size
        if pixels.shape[:2] == size:
            return pixels[slice(*rows), slice(*columns)]
        pillow = pillow_image()
        image = pillow.fromarray(np.ascontiguousarray(pixels))
        filter_ = getattr(pillow.Resampling, (self.interpolation or "bilinear").upper())
        if height * width <= _MOST_RESIZED:
            whole = np.asarray(image.resize((width, height), filter_))
            return whole[slice(*rows), slice(*columns)]
        down, across = pixels.shape[0] / height, pixels.shape[1] / width
        box = (columns[0] * across, rows[0] * down, columns[1] * across, rows[1] * down)
        sides = columns[1] - columns[0], rows[1] - rows[0]
        return np.asarray(image.resize(sides, filter_, box=box))

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of the resized picture, before the crop.

        Args:
            height: The picture's.
            width: The picture's.
        """
        if self.resize is None:
            return height, width
        if isinstance(self.resize, int):
            longer = int(self.resize * max(height, width) / min(height, width))
            return (longer, self.resize) if width <= height else (self.resize, longer)
        ratios = height / self.resize[0], width / self.resize[1]
        if self.crop_mode == BORDER:
            ratio = max(ratios)
        elif self.crop_mode == CENTER:
            ratio = min(ratios)
        else:
            return self.resize
        return max(round(height / ratio), 1), max(round(width / ratio), 1)

    def _start(self, size: int, crop: int) -> int:
        """Returns where the crop begins along an axis; below 0 where the picture is smaller."""
        if crop > size:
            return -((crop - size) // 2)
        half = (size - crop) / 2
        return int(half) if self.crop_mode is None else round(half)

    def _fill(self) -> list[int]:
        """Returns the colour of what lies outside of a smaller picture."""
        if self.crop_mode != BORDER or self.mean is None:
            return [0, 0, 0]
        return [round(255 * value) for value in self.mean]


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} × {shape[1]}"


class _Reader:
    """Reads steps from untrusted plain values, and names the one that does not fit."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def steps(self) -> Preprocessing:
        size = self._pair("size")
        if size is None:
            raise self._wrong("size", "a height and a width")
        given = self._data.get("resize")
        whole = isinstance(given, int) and not isinstance(given, bool)
        return Preprocessing(
            size=size,
            resize=self._side("resize", given) if whole else self._pair("resize"),
            crop=self._pair("crop"),
            crop_pct=self._number("crop_pct"),
            crop_mode=self._one_of("crop_mode", MODES),
            interpolation=self._one_of("interpolation", INTERPOLATIONS),
            rescale_factor=self._number("rescale_factor"),
            mean=self._numbers("mean"),
            std=self._numbers("std", no_zero=True),
            origin=str(self._data.get("origin", "")),
            other_steps=tuple(map(str, self._list("other_steps") or ())),
        )

    def _wrong(self, key: str, wanted: str) -> PreprocessingError:
        found = self._data.get(key)
        return PreprocessingError(
            f"The preprocessing is not valid: {key} should be {wanted}, and it is {found!r:.80}.",
            fix=_PASS,
        )

    def _list(self, key: str) -> list[Any] | None:
        value = self._data.get(key)
        if value is not None and not isinstance(value, list | tuple):
            raise self._wrong(key, "a list")
        return None if value is None else list(value)

    def _side(self, key: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, "of whole numbers")
        if not 1 <= value <= _LONGEST_SIDE:
            raise self._wrong(key, f"of 1 to {_LONGEST_SIDE} pixels")
        return value

    def _pair(self, key: str) -> tuple[int, int] | None:
        values = self._list(key)
        if values is None:
            return None
        if len(values) != 2:
            raise self._wrong(key, "a height and a width")
        return self._side(key, values[0]), self._side(key, values[1])

    def _number(self, key: str) -> float | None:
        value = self._data.get(key)
        if value is None:
            return None
        if not _is_number(value) or value == 0:
            raise self._wrong(key, "a number other than 0")
        return float(value)

    def _numbers(self, key: str, no_zero: bool = False) -> tuple[float, ...] | None:
        values = self._list(key)
        if values is None:
            return None
        if not all(map(_is_number, values)) or (no_zero and 0 in values):
            raise self._wrong(key, "a list of numbers" + " other than 0" * no_zero)
        return tuple(map(float, values))

    def _one_of(self, key: str, known: tuple[str, ...]) -> str | None:
        value = self._data.get(key)
        if value is not None and value not in known:
            raise self._wrong(key, f"one of {', '.join(known)}")
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
