"""Takes a picture to the input of a model: resize, crop from the middle, scale, normalise.

The sizes are rounded as the transforms of timm, torchvision and transformers round them, and the
resizing is Pillow's own::

    (H, W, 3) uint8  →  resized  →  crop from the middle  →  (x · rescale_factor − mean) / std
                                                          →  (3, h, w) float32

Some of them may be in the artifact, which then takes bytes::

    (H, W, 3) uint8  →  resized  →  crop from the middle  →  (h, w, 3) uint8  →  the artifact
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from tokexport.runtimes.errors import PreprocessingError
from tokexport.runtimes.pictures.pillow import pillow_image
from tokexport.runtimes.pictures.steps_reader import BORDER, CENTER, PASS, StepsReader

#: A resized picture of more pixels is not made whole, but only the part that the crop keeps.
_MOST_RESIZED: Final = 1 << 26


@dataclass(frozen=True)
class Cut:
    """What is cut from a resized picture, and where it lies in the input.

    Attributes:
        size: Height and width of the resized picture.
        crop: Height and width of the input.
        rows: The first row of the resized picture that is kept, and the first behind them.
        columns: The same of its columns.
        above: How many rows of the border are above them in the input.
        left: How many columns of the border are left of them.
    """

    size: tuple[int, int]
    crop: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    above: int
    left: int


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
        embedded: The steps that the artifact does itself, behind these: it takes pixels (h, w, 3)
            uint8 of ``size``. None where it does none, and takes (3, h, w) float32.
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
    embedded: Preprocessing | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the steps as plain values; ``other_steps`` and ``embedded`` only with some."""
        found = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(replace(self, embedded=None)).items()
            if value or key not in ("other_steps", "embedded")
        }
        return found if self.embedded is None else found | {"embedded": self.embedded.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Reads what ``to_json`` wrote, as ``preprocessing`` of a manifest holds it.

        Raises:
            PreprocessingError: A step is missing, or is not of its kind.
        """
        fields = StepsReader(data).fields()
        if fields["embedded"] is not None:
            inner = StepsReader(fields["embedded"]).fields()
            fields["embedded"] = cls(**inner | {"embedded": None})
        return cls(**fields)

    def embedding(self, size: tuple[int, int] | None) -> Preprocessing:
        """Returns what is left of these steps where an artifact does the others itself.

        Args:
            size: Height and width of the pictures that it takes, which it resizes and crops too;
                None where it only scales and normalises what is resized and cropped here.
        """
        left = self if size is None else replace(self._unresized(), size=size)
        inner = self._unresized() if size is None else self
        return replace(left, rescale_factor=None, mean=None, std=None, embedded=inner)

    def _unresized(self) -> Preprocessing:
        return replace(
            self, resize=None, crop=None, crop_pct=None, crop_mode=None, interpolation=None
        )

    @property
    def whole(self) -> Preprocessing:
        """All steps, whoever does them."""
        inner = self.embedded
        if inner is None or inner.resize is not None or inner.crop is not None:
            return inner or self
        factor, mean, std = inner.rescale_factor, inner.mean, inner.std
        return replace(self, rescale_factor=factor, mean=mean, std=std, embedded=None)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the input of one picture, without the axis of samples.

        It is (3, h, w) float32; or (h, w, 3) uint8 where the artifact does the other steps.

        Args:
            pixels: (H, W, 3) uint8: red, green, blue.

        Raises:
            PreprocessingError: The steps do not give an input of ``size``, or are not all done
                here.
            RuntimeMissingError: Pillow is not installed.
        """
        made = self.resized(pixels)
        return made if self.embedded is not None else self.normalised(made)

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
        cut = self.cut(*pixels.shape[:2])
        if cut.crop != self.size and self.embedded is not None and self.resize is None:
            raise PreprocessingError(
                f"A picture has {_sides(pixels.shape)} pixels, and the artifact takes "
                f"{_sides(self.size)}, which it resizes itself.",
                fix="Give pictures of that size, or compile with --embed-preprocess normalise.",
            )
        if cut.crop != self.size:
            nothing = ": the steps cut nothing" * (self.crop is None)
            raise PreprocessingError(
                f"A picture of {_sides(pixels.shape)} becomes {_sides(cut.crop)}, and the input "
                f"is {_sides(self.size)}{nothing}.",
                where=f"Found in: {self.origin}.",
                fix=PASS,
            )
        return self._resized_and_cropped(pixels, cut)

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
                fix=PASS,
            )

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns mean and deviation of the channels, 0 and 1 where nothing says them."""
        mean, std = self.mean or (0.0,) * 3, self.std or (1.0,) * 3
        if len(mean) != 3 or len(std) != 3:
            raise PreprocessingError(
                f"A picture has 3 channels, and the mean has {len(mean)} and the deviation "
                f"{len(std)}.",
                where=f"Found in: {self.origin}.",
                fix=PASS,
            )
        return mean, std

    def _resized_and_cropped(self, pixels: np.ndarray, cut: Cut) -> np.ndarray:
        """Resizes whole and crops; of a very large resized picture only the crop is made."""
        part = self._part(pixels, cut.size, cut.rows, cut.columns)
        if part.shape[:2] == cut.crop:
            return part
        made = np.empty((*cut.crop, 3), np.uint8)
        made[:] = self.border
        made[cut.above :, cut.left :][: part.shape[0], : part.shape[1]] = part
        return made

    def cut(self, height: int, width: int) -> Cut:
        """Returns what is cut from a picture once it is resized.

        Args:
            height: The picture's.
            width: The picture's.
        """
        size = self.resized_size(height, width)
        crop = self.crop or size
        top, left = (self._start(*pair) for pair in zip(size, crop, strict=True))
        return Cut(
            size=size,
            crop=crop,
            rows=(max(top, 0), min(top + crop[0], size[0])),
            columns=(max(left, 0), min(left + crop[1], size[1])),
            above=max(-top, 0),
            left=max(-left, 0),
        )

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

    @property
    def border(self) -> list[int]:
        """The colour of what lies outside of a smaller picture: red, green, blue."""
        mean = (self.embedded or self).mean
        if self.crop_mode != BORDER or mean is None:
            return [0, 0, 0]
        return [round(255 * min(max(value, 0.0), 1.0)) for value in mean]


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} × {shape[1]}"
