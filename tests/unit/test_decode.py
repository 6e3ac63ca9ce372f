"""Catalogue rows 24 and 26: what a file may be, and what becomes of it."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from dermalyze.data.decode import DECODE_VERSION, MAX_PIXELS, MAX_SCANS, PreprocessSpec, decode
from dermalyze.errors import ConfigError, DataError

SPEC = PreprocessSpec(image_size=16)


def picture(height: int = 20, width: int = 30) -> Image.Image:
    """Four quarters of other colours, so that every rotation and mirroring differs."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (200, 40, 40)
    pixels[: height // 2, width // 2 :] = (40, 200, 40)
    pixels[height // 2 :, : width // 2] = (40, 40, 200)
    pixels[height // 2 :, width // 2 :] = (220, 220, 60)
    return Image.fromarray(pixels)


def squashed(image: Image.Image, size: int = 16) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> BytesIO:
    stream = BytesIO()
    image.save(stream, format=format, **options)
    stream.seek(0)
    return stream


def png(width: int, height: int, bit_depth: int, colour_type: int, rows: bytes = b"") -> BytesIO:
    """A PNG written by hand, for kinds that Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return BytesIO(b"\x89PNG\r\n\x1a\n" + body)


def refusal(source: Any) -> str:
    with pytest.raises(DataError) as caught:
        decode(source, SPEC)
    return str(caught.value)


# What is read


@pytest.mark.parametrize("format", ["PNG", "BMP"])
def test_lossless_formats_give_the_squashed_pixels(format: str) -> None:
    pixels = decode(saved(picture(), format), SPEC)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (16, 16, 3)
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, squashed(picture()))


@pytest.mark.parametrize(("format", "options"), [("JPEG", {"quality": 95}), ("WEBP", {})])
def test_lossy_formats_give_the_pixels_that_pillow_opens(format: str, options: Any) -> None:
    stream = saved(picture(), format, **options)
    expected = squashed(Image.open(BytesIO(stream.getvalue())).convert("RGB"))
    np.testing.assert_array_equal(decode(stream, SPEC), expected)


def test_an_image_of_the_right_size_is_not_touched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(pixels)), SPEC), pixels)


def test_reduction_is_antialiased() -> None:
    # Stripes one pixel wide: sampling without a filter would give black or white.
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = decode(saved(Image.fromarray(stripes)), SPEC)[:, 1:-1]
    assert inner.min() >= 126
    assert inner.max() <= 129


def test_the_format_is_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(saved(picture()).getvalue())
    expected = squashed(picture())
    np.testing.assert_array_equal(decode(path, SPEC), expected)
    np.testing.assert_array_equal(decode(str(path), SPEC), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_and_mirroring_are_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {} if format == "PNG" else {"quality": 100}
    stream = saved(picture(), format, exif=exif, **options)
    upright = {
        1: lambda image: image,
        2: ImageOps.mirror,
        3: lambda image: image.rotate(180),
        4: ImageOps.flip,
        5: lambda image: ImageOps.mirror(image.rotate(-90, expand=True)),
        6: lambda image: image.rotate(-90, expand=True),
        7: lambda image: ImageOps.mirror(image.rotate(90, expand=True)),
        8: lambda image: image.rotate(90, expand=True),
    }[orientation](picture())
    difference = decode(stream, SPEC).astype(int) - squashed(upright)
    # Away from the quarters' borders, where lossy formats bleed.
    assert np.abs(difference[[2, 2, 13, 13], [2, 13, 2, 13]]).max() <= 12


def test_greyscale_and_one_bit_become_rgb() -> None:
    grey = picture().convert("L")
    np.testing.assert_array_equal(decode(saved(grey), SPEC), squashed(grey.convert("RGB")))
    one_bit = picture().convert("1", dither=Image.Dither.NONE)
    np.testing.assert_array_equal(decode(saved(one_bit), SPEC), squashed(one_bit.convert("RGB")))


def test_a_palette_becomes_the_colours_it_stands_for() -> None:
    # Four colours fit a palette, so nothing is lost; resizing indices would be nonsense.
    palette = picture().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    np.testing.assert_array_equal(decode(saved(palette), SPEC), squashed(picture()))


def test_cmyk_becomes_rgb() -> None:
    stream = saved(picture().convert("CMYK"), "JPEG", quality=100)
    difference = decode(stream, SPEC).astype(int) - squashed(picture())
    assert np.abs(difference[[2, 2, 13, 13], [2, 13, 2, 13]]).max() <= 6


def test_opaque_alpha_changes_nothing() -> None:
    rgba = picture().convert("RGBA")
    np.testing.assert_array_equal(decode(saved(rgba), SPEC), squashed(picture()))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_laid_over_black(mode: str) -> None:
    pixels = np.full((16, 16, len(mode)), 200, np.uint8)
    pixels[:8, :, -1] = 0
    pixels[8:12, :, -1] = 128
    pixels[12:, :, -1] = 255
    decoded = decode(saved(Image.fromarray(pixels, mode if mode == "LA" else None)), SPEC)
    assert (decoded[:8] == 0).all()
    assert np.abs(decoded[8:12].astype(int) - round(200 * 128 / 255)).max() <= 1
    assert (decoded[12:] == 200).all()


def test_transparent_colours_of_palette_and_rgb_are_laid_over_black() -> None:
    expected = np.asarray(picture()).copy()
    expected[(expected == (200, 40, 40)).all(-1)] = 0
    expected_squashed = squashed(Image.fromarray(expected))
    colour_key = saved(picture(), transparency=(200, 40, 40))
    np.testing.assert_array_equal(decode(colour_key, SPEC), expected_squashed)
    palette = picture().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    index = palette.getpixel((0, 0))
    np.testing.assert_array_equal(
        decode(saved(palette, transparency=index), SPEC), expected_squashed
    )


def test_of_a_jpeg_with_several_pictures_the_first_is_read() -> None:
    black = Image.new("RGB", (30, 20))
    stream = saved(picture(), "MPO", save_all=True, append_images=[black], quality=95)
    plain = saved(picture(), "JPEG", quality=95)
    np.testing.assert_array_equal(decode(stream, SPEC), decode(plain, SPEC))


# What is refused


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "ISIC_0000001.jpg"
    path.touch()
    assert refusal(path) == f"{path}: the file is empty (0 bytes). Download it again."


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><html>", b"\n\n  <html>", b"\xef\xbb\xbf<?xml version='1.0'?>"]
)
def test_a_web_page_named_jpg(tmp_path: Path, page: bytes) -> None:
    path = tmp_path / "ISIC_0000001.jpg"
    path.write_bytes(page)
    message = refusal(path)
    assert message.startswith(f"{path}: not an image but a web page or XML")
    assert message.endswith("Download it again.")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file(tmp_path: Path, format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = saved(Image.fromarray(noise), format).getvalue()
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole[: int(len(whole) * share)])
    message = refusal(path)
    assert message.startswith(f"{path}: truncated or damaged, cannot be decoded (")
    assert message.endswith("Download it again.")


def test_every_changed_or_missing_byte_of_a_png_is_found() -> None:
    whole = saved(picture()).getvalue()
    expected = squashed(picture())
    for position in range(len(whole) - len(b"....IEND....")):
        changed = bytearray(whole)
        changed[position] ^= 1
        assert refusal(BytesIO(bytes(changed)))
        assert refusal(BytesIO(whole[:position]))
    np.testing.assert_array_equal(decode(BytesIO(whole), SPEC), expected)


@pytest.mark.parametrize("format", ["TIFF", "GIF", "PPM"])
def test_other_formats(format: str) -> None:
    message = refusal(saved(picture(), format))
    assert message.startswith("<stream>: neither JPEG, PNG, BMP nor WebP, begins with b'")
    assert "save it as PNG" in message


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "absent.jpg"
    assert refusal(path) == f"{path}: cannot be opened: No such file or directory. Check the path."
    assert "directory" in refusal(tmp_path)
    assert "null" in refusal("a\0b.jpg")


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(saved(Image.new("I;16", (4, 4))), id="grey"),
        pytest.param(png(4, 4, 16, 2, (b"\0" + bytes(24)) * 4), id="rgb"),
        pytest.param(png(4, 4, 16, 4, (b"\0" + bytes(16)) * 4), id="grey-alpha"),
        pytest.param(png(4, 4, 16, 6, (b"\0" + bytes(32)) * 4), id="rgb-alpha"),
    ],
)
def test_more_than_8_bits(stream: BytesIO) -> None:
    assert "<stream>: more than 8 bits a channel" in refusal(stream)


def test_the_hand_written_png_is_read_at_8_bits() -> None:
    assert (decode(png(4, 4, 8, 2, (b"\0" + b"\x07" * 12) * 4), SPEC) == 7).all()


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_animation(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 100, 200)]
    stream = saved(frames[0], format, save_all=True, append_images=frames[1:])
    assert "<stream>: animated, 3 frames" in refusal(stream)


@pytest.mark.parametrize(("width", "height"), [(10_001, 5_000), (13_000, 13_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_from_the_header_without_a_warning(
    width: int, height: int
) -> None:
    # 169 million pixels: Pillow itself would warn; 3,600 million: it would raise its own error.
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        message = refusal(png(width, height, 8, 2))
    assert leaked == []
    assert f"{width} x {height} pixels, over the limit of 50 megapixels" in message


def test_a_webp_bomb() -> None:
    # An extended header that claims a canvas of 16384 x 16384.
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\x00" * 2
    stream = BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body + bytes(100))
    assert "the size in its header, over the limit of 50 megapixels" in refusal(stream)


def test_scans_without_end_are_refused_before_they_are_read() -> None:
    content = saved(Image.new("L", (64, 64)), "JPEG", progressive=True).getvalue()
    last = content.rindex(b"\xff\xda")
    scans = content.count(b"\xff\xda")
    assert 2 < scans < 20
    some, many = (
        BytesIO(content[:-2] + content[last:-2] * count + content[-2:])
        for count in (MAX_SCANS - scans, MAX_SCANS - scans + 1)
    )
    assert (decode(some, SPEC) == decode(BytesIO(content), SPEC)).all()
    assert f"<stream>: {MAX_SCANS + 1} scans over one image" in refusal(many)


def test_50_megapixels_are_allowed() -> None:
    assert MAX_PIXELS == 50_000_000
    # The header passes; the pixels are then found missing.
    assert "truncated or damaged" in refusal(png(10_000, 5_000, 8, 2))


def test_a_named_stream_is_named_in_the_error() -> None:
    stream = BytesIO(b"no image at all")
    stream.name = "upload.png"
    assert refusal(stream).startswith("upload.png: ")


@settings(max_examples=300)
@given(data=st.data(), format=st.sampled_from(["JPEG", "PNG", "BMP", "WEBP"]))
def test_damaged_bytes_give_pixels_or_a_data_error(data: st.DataObject, format: str) -> None:
    whole = bytearray(saved(picture(), format).getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, on damaged EXIF
        try:
            pixels = decode(BytesIO(bytes(whole)), SPEC)
        except DataError:
            return
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8


# The specification


def test_the_spec_survives_a_round_trip() -> None:
    assert SPEC.as_dict() == {"decode_version": DECODE_VERSION, "image_size": 16}
    assert PreprocessSpec.from_dict(SPEC.as_dict()) == SPEC


def test_a_spec_of_another_version_is_refused() -> None:
    values = {**SPEC.as_dict(), "decode_version": DECODE_VERSION + 1}
    with pytest.raises(DataError, match=rf"decode_version={DECODE_VERSION + 1}.*train again"):
        PreprocessSpec.from_dict(values)


@pytest.mark.parametrize(
    "values", [{}, {"image_size": 16}, {"decode_version": 1, "image_size": 16, "crop": 0.9}]
)
def test_a_spec_with_other_keys_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="expected the keys decode_version and image_size"):
        PreprocessSpec.from_dict(values)


@pytest.mark.parametrize("image_size", [0, -1, 224.0, "224", True, None])
def test_an_image_size_that_is_none(image_size: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size="):
        PreprocessSpec(image_size=image_size)
