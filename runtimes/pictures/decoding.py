"""Decodes a file of a picture into pixels of 8 bits a channel, red, green and blue.

The colours are those of Pillow's ``convert("RGB")``, which the loaders of torchvision and timm
call. Two things differ from it: the turn that EXIF asks for, as transformers applies it too; and
grey of 12 and 16 bits, which Pillow cuts off at 255::

    alpha, or a transparent colour    dropped: the colour beneath it stays, over no background
    grey, one bit, a palette          repeated, looked up
    grey of 16 bits, v                round(v / 257); of 12 bits, round(v · 255 / 4095)
    CMYK, CIELAB                      converted; no colour profile is applied
    several frames or pages           the first
    EXIF orientation                  applied
"""

from __future__ import annotations

import io
import re
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Final

import numpy as np

from tokexport.runtimes.errors import PictureError
from tokexport.runtimes.files.regular_files import open_regular
from tokexport.runtimes.pictures.pillow import pillow_image

#: The most pixels that are decoded; they take three bytes each.
MOST_PIXELS: Final = 1 << 27
#: The notes: what a conversion lost or changed, a clause each.
TRANSPARENT: Final = "transparency was dropped, and the colours beneath it stay"
DEEPER: Final = "more than 8 bits a channel became 8"
OTHER_COLOURS: Final = "colours were converted to RGB without a colour profile"
FIRST_FRAME: Final = "the first of several frames was taken"
TURNED: Final = "the EXIF orientation was applied"
EXIF_UNREADABLE: Final = "the EXIF data cannot be read, so nothing was turned"
#: The tag of the orientation, and Pillow's name of what undoes each.
_ORIENTATION: Final = 0x0112
_TURNS: Final = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
#: A photograph of some telephones, whose other frames are previews.
_WITH_PREVIEWS: Final = "MPO"
_WITH_ALPHA: Final = ("RGBA", "RGBa", "LA", "La", "PA")
_OTHER_COLOURS: Final = ("CMYK", "LAB", "HSV")
#: What Pillow calls the numbers in a file of 16 bits a channel ("BGR;16" has 5 or 6), with a sign,
#: of 12, and of a PNG file whose pixels are scaled when they are loaded.
_16_BITS: Final = re.compile(r"'(I|L|LA);16|;16[BLNRS]")
_SIGNED: Final = "16S"
_12_BITS: Final = "I;12"
_OTHER_DEPTHS: Final = re.compile(r"'L;[24]'|;16")
#: The tag of TIFF that says how grey is stored, and its value where 0 is white.
_PHOTOMETRIC: Final = 262
_WHITE_IS_ZERO: Final = 0
#: Formats that another program draws: Ghostscript runs what a file says, Windows its metafiles.
_DRAWN_BY_OTHERS: Final = ("EPS", "WMF")
#: What errors call a picture that is no file.
_IN_MEMORY: Final = "a picture in memory"
_ANEW: Final = "Copy the file again, save it anew as JPEG or PNG, or leave it out."


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (H, W, 3) uint8: red, green, blue.
        notes: What the conversion lost or changed, a clause each; empty where nothing was.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def decode(picture: str | Path | bytes, *, most_pixels: int = MOST_PIXELS) -> Picture:
    """Decodes a file of a picture; its contents decide the format, not its suffix.

    Args:
        picture: The file, or its bytes: JPEG, PNG, WebP, TIFF, BMP, GIF, or what else this Pillow
            reads.
        most_pixels: The most pixels that it may have.

    Raises:
        PictureError: It is missing, no picture, damaged or cut off, or has more pixels.
        RuntimeMissingError: Pillow is not installed.
    """
    path = Path(_IN_MEMORY if isinstance(picture, bytes) else picture)
    pillow = pillow_image()
    try:
        with _opened(picture) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, metadata and transparency: said here
            return _decoded(pillow, file, path, most_pixels)
    except (PictureError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise PictureError(
            "The picture does not exist.", where=str(path), fix="Check its name."
        ) from error
    except pillow.UnidentifiedImageError as error:
        raise PictureError(
            "The file is not a picture that Pillow reads.",
            where=str(path),
            fix="Save it as JPEG or PNG, or leave it out.",
        ) from error
    except pillow.DecompressionBombError as error:
        raise _too_large(path, "more pixels than Pillow decodes", most_pixels) from error
    except Exception as error:  # what its decoders raise of broken files has no common class
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PictureError(
            "The picture cannot be decoded: it is damaged, cut off, or not readable.",
            where=f"{path} ({reason})",
            fix=_ANEW,
        ) from error


def _opened(picture: str | Path | bytes) -> AbstractContextManager[BinaryIO]:
    """Opens a file, or bytes as one."""
    return io.BytesIO(picture) if isinstance(picture, bytes) else open_regular(Path(picture))


def _decoded(pillow: ModuleType, file: BinaryIO, path: Path, most_pixels: int) -> Picture:
    """Decodes an open file."""
    with pillow.open(file) as image:
        _check_size(image, path, most_pixels)
        if image.format in _DRAWN_BY_OTHERS:
            raise PictureError(
                f"The file is of {image.format}, which another program would have to draw.",
                where=str(path),
                fix="Save it as JPEG or PNG, or leave it out.",
            )
        stored = str(getattr(image, "tile", ""))
        notes = [DEEPER] if _16_BITS.search(stored) or _is_deep_portable(image) else []
        image.load()
        _check_size(image, path, most_pixels)  # an icon may hold another size than it says
        converted, said = _as_rgb(pillow, image, path, stored)
        turn, found = _turn(image)
        if turn is not None:
            converted = converted.transpose(getattr(pillow.Transpose, turn))
        notes += [*said, *found]
        if image.format != _WITH_PREVIEWS and _has_more_frames(image):
            notes.append(FIRST_FRAME)
    pixels = np.array(converted, dtype=np.uint8)
    return Picture(pixels, tuple(dict.fromkeys(notes)))


def _is_deep_portable(image: Any) -> bool:
    """Returns whether a PPM or an SGI file has more than 8 bits a channel, before it is loaded."""
    for tile in getattr(image, "tile", ()):
        largest = tile[3][-1] if tile[0] == "ppm" and isinstance(tile[3], tuple) else 255
        if tile[0] == "SGI16" or largest > 255:
            return True
    return False


def _check_size(image: Any, path: Path, most_pixels: int) -> None:
    width, height = image.size
    if width * height > most_pixels:
        raise _too_large(path, f"{width:,} × {height:,} pixels", most_pixels)


def _too_large(path: Path, size: str, most: int) -> PictureError:
    return PictureError(
        f"The picture has {size}, and at most {most:,} are decoded.",
        where=str(path),
        fix="Scale it down, or leave it out: a small file may unpack to fill the memory.",
    )


def _as_rgb(pillow: ModuleType, image: Any, path: Path, stored: str) -> tuple[Any, list[str]]:
    """Converts a loaded picture to RGB, and says what that loses.

    Args:
        pillow: Pillow.
        image: The picture.
        path: Its file.
        stored: What Pillow said of its numbers in the file, before it was loaded.
    """
    mode = str(image.mode)
    if mode.startswith("I"):
        white = 4095 if _12_BITS in stored else 65535
        notes = [TRANSPARENT] * ("transparency" in image.info)
        return _deep_grey(pillow, image, path, white, signed=_SIGNED in stored), [*notes, DEEPER]
    if mode == "F":
        raise PictureError(
            "The picture holds floating-point numbers, and nothing says which is white.",
            where=str(path),
            fix="Save it with 8 bits a channel.",
        )
    notes = [TRANSPARENT] * _is_transparent(image, stored) + [OTHER_COLOURS] * (
        mode in _OTHER_COLOURS
    )
    return image.convert("RGB"), notes


def _deep_grey(pillow: ModuleType, image: Any, path: Path, white: int, *, signed: bool) -> Any:
    """Scales grey of 12 or 16 bits to 8: white becomes 255."""
    values = np.asarray(image).astype(np.int64)
    lowest, highest = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if signed or lowest < 0 or highest > white:
        raise PictureError(
            f"The picture holds grey values from {lowest} to {highest}, and nothing says which is "
            "white.",
            where=str(path),
            fix="Save it with 8 or 16 bits a channel.",
        )
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values  # which Pillow does for 8 bits alone
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    return pillow.fromarray(np.repeat(grey[..., None], 3, axis=-1))


def _is_transparent(image: Any, stored: str) -> bool:
    """Returns whether a pixel is not opaque, or may not be.

    Pillow keeps the transparent colour of a PNG file in the file's own depth, and scales pixels of
    2, 4 and 16 bits to 8: which of them had that colour is then not known.
    """
    if "transparency" in image.info and _OTHER_DEPTHS.search(stored):
        return True
    if "transparency" in image.info and image.mode not in _WITH_ALPHA:
        image = image.convert("RGBA")
    if image.mode not in _WITH_ALPHA:
        return False
    return bool((np.asarray(image.getchannel(image.getbands()[-1])) < 255).any())


def _turn(image: Any) -> tuple[str | None, list[str]]:
    """Returns how a loaded picture is to be turned, by Pillow's name, and a note of it."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # any damage of its metadata, which is no damage of its pixels
        return None, [EXIF_UNREADABLE]
    return turn, [] if turn is None else [TURNED]


def _has_more_frames(image: Any) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a second frame that is damaged
        return True
