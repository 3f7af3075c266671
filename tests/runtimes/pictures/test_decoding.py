"""What a file of a picture becomes, what it loses on the way, and what is refused."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

from tokexport.runtimes.errors import PictureError, RuntimeMissingError
from tokexport.runtimes.pictures import decode
from tokexport.runtimes.pictures.decoding import (
    DEEPER,
    EXIF_UNREADABLE,
    FIRST_FRAME,
    OTHER_COLOURS,
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


def test_a_transparent_colour_that_no_pixel_has_loses_nothing(tmp_path: Path) -> None:
    of_palette = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    paths = [saved(of_palette, tmp_path / "a.png", transparency=bytes([255] * 16))]
    paths.append(saved(Image.fromarray(RGB // 2), tmp_path / "c.png", transparency=(255, 0, 0)))
    paths.append(saved(Image.fromarray(RGB[..., 0] // 2), tmp_path / "d.png", transparency=255))
    for path in paths:
        with Image.open(path) as opened:
            assert "transparency" in opened.info
        assert decode(path).notes == ()
    red = saved(Image.fromarray(RGB), tmp_path / "e.png", transparency=tuple(map(int, RGB[0, 0])))
    assert decode(red).notes == (TRANSPARENT,)


def png(size: tuple[int, int], depth: int, colour: int, rows: bytes, transparent: bytes) -> bytes:
    """Writes a PNG file by hand, of kinds that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))]
    parts += [chunk(b"tRNS", transparent)] if transparent else []
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("depth", "colour", "row", "transparent"),
    [
        (1, 0, b"\x80", b"\0\1"),
        (2, 0, b"\x80", b"\0\2"),
        (4, 0, b"\x30", b"\0\3"),
        (8, 0, b"\7", b"\0\7"),
        (16, 0, b"\1\1", b"\1\1"),
        (16, 2, b"\0\1\0\2\0\3", b"\0\1\0\2\0\3"),
    ],
)
def test_a_transparent_colour_is_noted_at_every_depth(
    depth: int, colour: int, row: bytes, transparent: bytes
) -> None:
    deep = (DEEPER,) * (depth == 16)
    assert {*decode(png((1, 1), depth, colour, b"\0" + row, transparent)).notes} == {
        TRANSPARENT,
        *deep,
    }


def test_depths_that_only_a_decoder_names_are_noted(tmp_path: Path) -> None:
    assert decode(b"P6 2 1 65535\n" + bytes(12)).notes == (DEEPER,)
    assert decode(b"P6 2 1 255\n" + bytes(6)).notes == ()
    assert decode(saved(Image.fromarray(RGB), tmp_path / "a.sgi", bpc=2)).notes == (DEEPER,)
    assert decode(saved(Image.fromarray(RGB), tmp_path / "b.sgi")).notes == ()


def grey_tiff(path: Path, bits: int, photometric: int, data: bytes) -> Path:
    """Writes grey of 4 × 2 pixels by hand: Pillow writes none of these."""
    tags = [(256, 4), (257, 2), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1)]
    tags += [(278, 2), (279, len(data))]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(head + data)
    return path


def test_grey_of_12_bits_is_scaled_by_its_own_white(tmp_path: Path) -> None:
    packed = int("".join(f"{one:012b}" for one in (0, 8, 9, 2048, 4000, 4094, 4095, 16)), 2)
    found = decode(grey_tiff(tmp_path / "a.tif", 12, 1, packed.to_bytes(12, "big")))
    assert found.pixels[..., 0].ravel().tolist() == [0, 0, 1, 128, 249, 255, 255, 1]
    assert found.notes == (DEEPER,)


def test_grey_of_16_bits_whose_white_is_zero_is_turned_over(tmp_path: Path) -> None:
    values = np.array([0, 257, 32768, 65535] * 2, "<u2").tobytes()
    for photometric, wanted in ((0, [255, 254, 127, 0]), (1, [0, 1, 128, 255])):
        found = decode(grey_tiff(tmp_path / "a.tif", 16, photometric, values))
        assert found.pixels[0, :, 0].tolist() == wanted


def test_five_bits_a_channel_are_not_deeper_than_eight(tmp_path: Path) -> None:
    head = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    head += struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    size = 14 + len(head)
    start = b"BM" + struct.pack("<IHHI", size + 4, 0, 0, size)
    (tmp_path / "a.bmp").write_bytes(start + head + struct.pack("<HH", 0xF800, 0x001F))
    found = decode(tmp_path / "a.bmp")
    assert found.pixels.tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert found.notes == ()


def test_grey_of_16_bits_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 256], [257, 32768, 65406, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        found = decode(saved(Image.fromarray(values), tmp_path / name))
        wanted = np.round(values / 257).astype(np.uint8)
        assert wanted[-1, -1] == 255
        np.testing.assert_array_equal(found.pixels, np.repeat(wanted[..., None], 3, axis=-1))
        assert found.notes == (DEEPER,)


def test_colours_of_16_bits_are_noted() -> None:
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in RGB)
    found = decode(png((RGB.shape[1], RGB.shape[0]), 16, 2, rows, b""))
    np.testing.assert_array_equal(found.pixels, RGB)
    assert found.notes == (DEEPER,)


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


def test_no_other_program_draws_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # found anew
    path = saved(Image.fromarray(RGB), tmp_path / "a.eps").rename(tmp_path / "a.png")
    refused(path, "another program would have to draw")
    assert not ran.exists()


def test_an_icon_has_no_more_pixels_than_allowed_inside(tmp_path: Path) -> None:
    inside = saved(Image.fromarray(RGB), tmp_path / "a.png").read_bytes()
    head = struct.pack("<HHHBBBBHHII", 0, 1, 1, 2, 2, 0, 0, 1, 32, len(inside), 22)
    (tmp_path / "a.ico").write_bytes(head + inside)  # says 2 × 2, and holds 5 × 7
    assert decode(tmp_path / "a.ico").pixels.shape == (7, 5, 3)
    refused(tmp_path / "a.ico", "5 × 7 pixels", most_pixels=34)


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
