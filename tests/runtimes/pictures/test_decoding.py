"""What a file of a picture becomes, what it loses on the way, and what is refused."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tokexport.runtimes.errors import PictureError, RuntimeMissingError
from tokexport.runtimes.pictures import decode
from tokexport.runtimes.pictures.decoding import (
    EXIF_UNREADABLE,
    FIRST_FRAME,
    OTHER_COLOURS,
    SIXTEEN_BITS,
    TRANSPARENT,
    TURNED,
)

RGB = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_pixels_without_loss_stay_as_they_are(suffix: str, tmp_path: Path) -> None:
    found = decode(saved(Image.fromarray(RGB), tmp_path / f"a.{suffix}"))
    assert found.pixels.dtype == np.uint8
    np.testing.assert_array_equal(found.pixels, RGB)
    assert found.notes == ()
    assert found.pixels.flags.writeable


def test_the_contents_decide_and_not_the_suffix(tmp_path: Path) -> None:
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")
    np.testing.assert_array_equal(decode(str(path.rename(tmp_path / "a.jpg"))).pixels, RGB)


@pytest.mark.parametrize(
    ("mode", "notes"),
    [
        ("L", ()),
        ("1", ()),
        ("P", ()),
        ("RGBA", (TRANSPARENT,)),
        ("LA", (TRANSPARENT,)),
        ("CMYK", (OTHER_COLOURS,)),
        ("LAB", (OTHER_COLOURS,)),
    ],
)
def test_other_modes_become_what_pillow_makes_of_them(
    mode: str, notes: tuple[str, ...], tmp_path: Path
) -> None:
    image = Image.new(mode, (5, 7))
    drawn = Image.fromarray(RGB)
    image = drawn.convert(mode) if mode not in ("LAB", "LA") else image
    if "A" in mode and mode != "LAB":
        image = drawn.convert(mode)
        image.putalpha(Image.fromarray(np.arange(35, dtype=np.uint8).reshape(7, 5)))
    path = saved(image, tmp_path / ("a.tif" if mode in ("CMYK", "LAB") else "a.png"))
    found = decode(path)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(found.pixels, np.asarray(opened.convert("RGB")))
    assert found.notes == notes


def test_alpha_is_dropped_and_opaque_alpha_loses_nothing(tmp_path: Path) -> None:
    for alpha, notes in ((0, (TRANSPARENT,)), (255, ())):
        rgba = np.dstack([RGB, np.full(RGB.shape[:2], alpha, np.uint8)])
        found = decode(saved(Image.fromarray(rgba), tmp_path / "a.png"))
        np.testing.assert_array_equal(found.pixels, RGB)
        assert found.notes == notes


def test_a_transparent_colour_of_a_palette_is_noted(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    path = saved(image, tmp_path / "a.png", transparency=bytes([0, 128] + [255] * 14))
    found = decode(path)
    np.testing.assert_array_equal(found.pixels, np.asarray(image.convert("RGB")))
    assert found.notes == (TRANSPARENT,)


def test_grey_of_16_bits_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 256], [257, 32768, 65406, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        found = decode(saved(Image.fromarray(values), tmp_path / name))
        wanted = np.round(values / 257).astype(np.uint8)
        assert wanted[-1, -1] == 255
        np.testing.assert_array_equal(found.pixels, np.repeat(wanted[..., None], 3, axis=-1))
        assert found.notes == (SIXTEEN_BITS,)


def rgb_of_16_bits(path: Path) -> Path:
    """Writes a PNG by hand: Pillow writes no colours of 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in RGB)
    head = struct.pack(">IIBBBBB", RGB.shape[1], RGB.shape[0], 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_colours_of_16_bits_are_noted(tmp_path: Path) -> None:
    found = decode(rgb_of_16_bits(tmp_path / "a.png"))
    np.testing.assert_array_equal(found.pixels, RGB)
    assert found.notes == (SIXTEEN_BITS,)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_it_is_turned_as_exif_says(orientation: int, suffix: str, tmp_path: Path) -> None:
    image = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(image, tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(path) as opened:
        wanted = ImageOps.exif_transpose(opened)
        np.testing.assert_array_equal(decode(path).pixels, np.asarray(wanted))
    if suffix == "png":
        assert decode(path).notes == ((TURNED,) if orientation > 1 else ())


def test_damaged_exif_data_turn_nothing(tmp_path: Path) -> None:
    path = saved(Image.fromarray(RGB), tmp_path / "a.png", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff")
    found = decode(path)
    np.testing.assert_array_equal(found.pixels, RGB)
    assert found.notes in ((), (EXIF_UNREADABLE,))


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 6, 3), level, np.uint8)) for level in (10, 200, 90)]
    for name in ("a.gif", "a.tif", "a.png", "a.webp"):
        options = {"lossless": True} if name.endswith("webp") else {}
        path = saved(frames[0], tmp_path / name, save_all=True, append_images=frames[1:], **options)
        found = decode(path)
        assert set(found.pixels.flat) == {10}
        assert found.notes == (FIRST_FRAME,)


def refused(path: Path, *parts: str, most_pixels: int = 1000) -> None:
    with pytest.raises(PictureError) as caught:
        decode(path, most_pixels=most_pixels)
    for part in (str(path), *parts):
        assert part in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp"])
def test_a_file_that_is_cut_off_is_named(suffix: str, tmp_path: Path) -> None:
    whole = saved(Image.fromarray(RGB), tmp_path / f"a.{suffix}").read_bytes()
    for share in (0.4, 0.7):
        path = tmp_path / f"b.{suffix}"
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"not a picture at all")
    refused(tmp_path / "a.jpg", "is not a picture that Pillow reads", "Save it as JPEG or PNG")
    (tmp_path / "b.jpg").write_bytes(b"")
    refused(tmp_path / "b.jpg", "is not a picture")
    refused(tmp_path / "c.jpg", "does not exist")
    refused(tmp_path, "cannot be decoded")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "It is a pipe")


def test_the_bytes_of_a_file_are_decoded_as_the_file(tmp_path: Path) -> None:
    path = saved(Image.fromarray(RGB).convert("RGBA"), tmp_path / "a.png")
    found, wanted = decode(path.read_bytes()), decode(path)
    np.testing.assert_array_equal(found.pixels, wanted.pixels)
    assert found.notes == wanted.notes
    for body in (b"", b"not a picture", path.read_bytes()[:-30]):
        with pytest.raises(PictureError) as caught:
            decode(body)
        assert "a picture in memory" in caught.value.where


def test_floating_point_and_wide_grey_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(np.ones((2, 2), np.float32))
    refused(saved(image, tmp_path / "a.tif"), "floating-point", "8 bits a channel")
    image = Image.fromarray(np.array([[0, 70000]], np.int32))
    refused(saved(image, tmp_path / "b.tif"), "from 0 to 70000")


def png_of_size(path: Path, width: int, height: int) -> Path:
    """Writes the head of a picture of any size, with a few bytes of data."""
    path = saved(Image.fromarray(RGB), path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)
    return path


def test_a_picture_that_unpacks_to_fill_the_memory_is_refused(tmp_path: Path) -> None:
    refused(saved(Image.fromarray(RGB), tmp_path / "a.png"), "7", most_pixels=34)
    assert decode(tmp_path / "a.png", most_pixels=35).pixels.shape == (7, 5, 3)
    for width, height in ((40_000, 40_000), (12_000, 12_000), (1 << 30, 1)):
        path = png_of_size(tmp_path / "b.png", width, height)
        with pytest.raises(PictureError, match="pixels") as caught:
            decode(path)
        assert str(path) in str(caught.value)


def test_the_install_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(RuntimeMissingError) as caught:
        decode(tmp_path / "a.png")
    assert "pip install 'tokexport[pictures]'" in str(caught.value)


@pytest.mark.parametrize("draw", [lambda: RGB[:1, :1], lambda: np.repeat(RGB[:1], 400, axis=1)])
def test_extreme_shapes(draw: Callable[[], np.ndarray], tmp_path: Path) -> None:
    wanted = draw()
    path = saved(Image.fromarray(np.ascontiguousarray(wanted)), tmp_path / "a.png")
    np.testing.assert_array_equal(decode(path).pixels, wanted)
