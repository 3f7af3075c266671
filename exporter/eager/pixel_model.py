"""A model that takes the bytes of pictures: part of its preprocessing stands in front of it.

::

    (N, H, W, 3) uint8 → float32 → (N, 3, H, W)
        → x · [coarse | fine] → rounded to bytes: the columns, where it resizes
        → [coarse | fine] · x → rounded to bytes: the rows, before them where Pillow does so
        → a border around it, where the crop is larger
        → x · scale − shift → the model

It is a module as any other: eager, the trace and every stage run the same steps. The products with
coarse and fine coefficients are exact sums of whole numbers (``resampling``), so resizing gives the
bytes of Pillow in every runtime, and no stage rounds otherwise than eager.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from tokexport.exporter.eager.flat_model import CallSpec
from tokexport.exporter.eager.resampling import FINE, POINT, Coefficients, coefficients
from tokexport.exporter.errors import UsageError
from tokexport.runtimes.pictures.preprocessing import Cut, Preprocessing

#: The most pixels of a resized picture.
_MOST_RESIZED: Final = 1 << 24
#: The most pairs of pictures in which the order of the axes is looked for: of a few pixels a pair
#: often has the same in both.
_MOST_PROBES: Final = 64
_TO_THE_RUNNER: Final = "Leave the resizing to the runner: --embed-preprocess normalise."


class Resize(nn.Module):
    """Resizes pictures of one size and cuts them, as the installed Pillow does, to the last bit.

    Which axis Pillow resizes first depends on its version and on the sizes: the order is taken that
    gives its bytes.

    Args:
        size: Height and width of the pictures.
        steps: How they are resized and cut.

    Raises:
        UsageError: They shrink or grow by more than float32 holds the sums of, or this Pillow
            resizes otherwise.
        RuntimeMissingError: Pillow is not installed.
    """

    rows: Tensor | None
    columns: Tensor | None
    frame: Tensor | None

    def __init__(self, size: tuple[int, int], steps: Preprocessing) -> None:
        super().__init__()
        self.cut = cut = steps.cut(*size)
        if cut.size[0] * cut.size[1] > _MOST_RESIZED:
            raise UsageError(
                f"Pictures of {size[0]} × {size[1]} would become {cut.size[0]} × {cut.size[1]}.",
                fix=_TO_THE_RUNNER,
            )
        kind = steps.interpolation or "bilinear"
        down = _of_axis(size[0], cut.size[0], kind, cut.rows)
        across = _of_axis(size[1], cut.size[1], kind, cut.columns)
        self.read = _read(down, cut.rows), _read(across, cut.columns)
        rows, columns = (
            None if one is None else _tensor(_beside(one)[:, slice(*read)])
            for one, read in zip((down, across), self.read, strict=True)
        )
        self.register_buffer("rows", rows)
        self.register_buffer("columns", None if columns is None else columns.T.contiguous())
        self.register_buffer("frame", _frame(cut, steps.border))
        self.rows_first = False
        self._take_the_order_of_pillow(size, steps)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, 3, h, w) of whole numbers from (N, 3, H, W), both float32 of 0 … 255."""
        (top, bottom), (left, right) = self.read
        x = x[:, :, top:bottom, left:right]
        x = self._across(self._down(x)) if self.rows_first else self._down(self._across(x))
        if self.frame is None:
            return x
        (height, width), (above, before) = self.cut.crop, (self.cut.above, self.cut.left)
        around = (before, width - before - x.shape[-1], above, height - above - x.shape[-2])
        return nn.functional.pad(x, around) + self.frame

    def _across(self, x: Tensor) -> Tensor:
        """Resizes the columns of each row."""
        if self.columns is None:
            return x
        return _bytes(*torch.matmul(x, self.columns).chunk(2, dim=-1))

    def _down(self, x: Tensor) -> Tensor:
        """Resizes the rows of each column."""
        return x if self.rows is None else _bytes(*torch.matmul(self.rows, x).chunk(2, dim=-2))

    def _take_the_order_of_pillow(self, size: tuple[int, int], steps: Preprocessing) -> None:
        """Resizes the axis first that Pillow does, as pictures show in which the two differ."""
        random = np.random.default_rng(0)
        for _ in range(_MOST_PROBES):
            pixels = random.integers(0, 256, (2, *size, 3), dtype=np.uint8)
            pixels[1] = np.where(pixels[1] < 128, 0, 255)
            wanted = np.stack([steps.resized(one) for one in pixels]).astype(np.float32)
            x, off = _tensor(pixels).permute(0, 3, 1, 2), {}
            for self.rows_first in (False, True):
                with torch.no_grad():
                    found = self(x).permute(0, 2, 3, 1).numpy()
                off[self.rows_first] = np.abs(found - wanted)
            least = min(float(one.max()) for one in off.values())
            if least > 1:
                raise UsageError(
                    f"The Pillow that is installed resizes {size[0]} × {size[1]} pixels otherwise, "
                    f"by {least:.0f} levels of 255.",
                    fix=_TO_THE_RUNNER,
                )
            by_rows, by_columns = (float(off[order].sum()) for order in (True, False))
            self.rows_first = by_rows < by_columns
            one_order = self.rows is None or self.columns is None
            if one_order or by_rows != by_columns:
                return


class PixelModel(nn.Module):
    """Runs steps of the preprocessing, and then the user's model.

    Args:
        model: The user's model, which takes one picture input (N, 3, h, w) float32.
        spec: How it takes that.
        left: What is left to the runner; its ``embedded`` steps are done here.

    Raises:
        UsageError: The resizing cannot be done exactly.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, spec: CallSpec, left: Preprocessing) -> None:
        super().__init__()
        steps = left.embedded
        assert steps is not None
        self.model, self._spec = model, spec
        cut = steps.cut(*left.size)
        stays = left.size == cut.size == cut.crop
        self.resize = None if stays else Resize(left.size, steps)
        mean, std = np.array(steps.mean or (0.0,) * 3), np.array(steps.std or (1.0,) * 3)
        factor = 1.0 if steps.rescale_factor is None else steps.rescale_factor
        for name, values in (("scale", factor / std), ("shift", mean / std)):
            self.register_buffer(name, _tensor(values)[:, None, None])

    def forward(self, pixels: Tensor) -> Any:
        """Returns what the model gives on pictures (N, H, W, 3) uint8: red, green, blue."""
        x = pixels.to(torch.float32).permute(0, 3, 1, 2)
        if self.resize is not None:
            # whole numbers end what a narrower precision must not round
            x = self.resize(x).to(torch.int32).to(torch.float32)
        args, kwargs = self._spec.arguments([x * self.scale - self.shift])
        return self.model(*args, **kwargs)


def _of_axis(
    size: int, resized: int, interpolation: str, kept: tuple[int, int]
) -> Coefficients | None:
    """Returns the coefficients of what the crop keeps of an axis; None where it is not resized."""
    if size == resized:
        return None
    whole = coefficients(size, resized, interpolation)
    found = Coefficients(whole.coarse[slice(*kept)], whole.fine[slice(*kept)])
    if not found.exact:
        raise UsageError(
            f"Resizing {size} pixels to {resized} has sums that float32 does not hold.",
            fix=_TO_THE_RUNNER,
        )
    return found


def _read(one: Coefficients | None, kept: tuple[int, int]) -> tuple[int, int]:
    """Returns the first pixel of an axis that is read, and the first behind them."""
    if one is None:
        return kept
    read = np.flatnonzero((one.coarse != 0).any(0) | (one.fine != 0).any(0))
    return int(read[0]), int(read[-1]) + 1


def _beside(one: Coefficients) -> np.ndarray:
    """Returns both parts of coefficients in one matrix, so that one product reads the picture."""
    return np.concatenate([one.coarse, one.fine])


def _frame(cut: Cut, border: list[int]) -> Tensor | None:
    """Returns the border (3, h, w) around the part that is cut, which is 0; None without one."""
    inside = cut.rows[1] - cut.rows[0], cut.columns[1] - cut.columns[0]
    if inside == cut.crop:
        return None
    frame = np.empty((3, *cut.crop), np.float32)
    frame[:] = np.array(border)[:, None, None]
    rows = slice(cut.above, cut.above + inside[0])
    frame[:, rows, cut.left : cut.left + inside[1]] = 0
    return _tensor(frame)


def _bytes(coarse: Tensor, fine: Tensor) -> Tensor:
    """Returns sums of bytes with coefficients as Pillow rounds them, whole numbers 0 … 255."""
    whole = torch.floor(coarse * 2.0 ** (FINE - POINT))
    rest = coarse - whole * 2.0 ** (POINT - FINE)
    units = rest * 2.0**FINE + fine + 2.0 ** (POINT - 1)
    return (whole + torch.floor(units * 2.0**-POINT)).clamp(0.0, 255.0)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
