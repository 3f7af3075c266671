"""Reads the steps of a preprocessing from untrusted plain values, as a manifest holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from tokexport.runtimes.errors import PreprocessingError

#: What timm calls its ways to resize and crop.
CENTER: Final = "center"
SQUASH: Final = "squash"
BORDER: Final = "border"
MODES: Final = (CENTER, SQUASH, BORDER)
INTERPOLATIONS: Final = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
#: The largest side of an input.
_LONGEST_SIDE: Final = 1 << 14
#: What to do about steps that do not fit.
PASS: Final = "Pass the steps with --preprocess, or preprocess the pictures by yourself."


class StepsReader:
    """Reads steps from untrusted plain values, and names the one that does not fit.

    Args:
        data: The plain values.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def fields(self) -> dict[str, Any]:
        """Returns the values of the fields of ``Preprocessing``, ``embedded`` as it is.

        Raises:
            PreprocessingError: A step is missing, or is not of its kind.
        """
        size = self._pair("size")
        if size is None:
            raise self._wrong("size", "a height and a width")
        given = self._data.get("resize")
        whole = isinstance(given, int) and not isinstance(given, bool)
        return {
            "size": size,
            "resize": self._side("resize", given) if whole else self._pair("resize"),
            "crop": self._pair("crop"),
            "crop_pct": self._number("crop_pct"),
            "crop_mode": self._one_of("crop_mode", MODES),
            "interpolation": self._one_of("interpolation", INTERPOLATIONS),
            "rescale_factor": self._number("rescale_factor"),
            "mean": self._numbers("mean"),
            "std": self._numbers("std", no_zero=True),
            "origin": str(self._data.get("origin", "")),
            "other_steps": tuple(map(str, self._list("other_steps") or ())),
            "embedded": self._object("embedded"),
        }

    def _wrong(self, key: str, wanted: str) -> PreprocessingError:
        found = self._data.get(key)
        return PreprocessingError(
            f"The preprocessing is not valid: {key} should be {wanted}, and it is {found!r:.80}.",
            fix=PASS,
        )

    def _list(self, key: str) -> list[Any] | None:
        value = self._data.get(key)
        if value is not None and not isinstance(value, list | tuple):
            raise self._wrong(key, "a list")
        return None if value is None else list(value)

    def _object(self, key: str) -> Mapping[str, Any] | None:
        value = self._data.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self._wrong(key, "an object")
        return value

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
