"""What may be given as an image in memory, and how it is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from dermalyze.data.decode import PreprocessSpec, decode
from dermalyze.errors import DataError
from dermalyze.prediction.pictures import known_of, name_of, pixels_of

SPEC = PreprocessSpec(image_size=16)
RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def as_file(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    stream.seek(0)
    return stream


def pixels(picture):
    return pixels_of(picture, SPEC, "it")


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_pixels_in_memory_become_what_their_file_becomes(channels):
    shape = (20, 30) if channels is None else (20, 30, channels)
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    flat = array[:, :, 0] if channels == 1 else array
    expected = decode(as_file(Image.fromarray(flat)), SPEC)
    assert np.array_equal(pixels(array), expected)
    assert np.array_equal(pixels(np.asfortranarray(array)), expected)
    assert np.array_equal(pixels(torch.tensor(array)), expected)
    if channels is not None:
        assert np.array_equal(pixels(torch.tensor(array).permute(2, 0, 1)), expected)
        assert np.array_equal(pixels(array[:, :, ::-1]), pixels(array[:, :, ::-1].copy()))


def test_an_opened_image_is_turned_upright_and_left_as_it_is():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = as_file(Image.fromarray(RGB), "JPEG", exif=exif)
    image = Image.open(io.BytesIO(file.getvalue()))
    assert np.array_equal(pixels(image), decode(file, SPEC))
    assert image.size == (30, 20)
    assert image.getexif()[ExifTags.Base.Orientation] == 6
    assert not np.array_equal(pixels(image), pixels(np.array(image)))  # which knows of no rotation


def test_of_a_jpeg_with_several_pictures_the_first_is_taken():
    two = as_file(
        Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.fromarray(255 - RGB)]
    )
    assert Image.open(two).format == "MPO"
    assert np.array_equal(pixels(Image.open(two)), decode(io.BytesIO(two.getvalue()), SPEC))


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (RGB / 255, "float64, and how they map to 0..255 is not ours to guess. Give uint8: of num"),
        (RGB.astype(np.uint16), "pixels of type uint16"),
        (torch.tensor(RGB).float(), "pixels of type float32"),
        (RGB > 9, "pixels of type bool"),
        (RGB[None], "an array of shape (1, 20, 30, 3). Give one image, or several as a list to"),
        (torch.tensor(RGB)[None], "an array of shape (1, 20, 30, 3)"),
        (np.moveaxis(RGB, 2, 0), "Channels come last in an array: np.moveaxis(image, 0, 2)"),
        (RGB[:, :, :2], "an array of shape (20, 30, 2). Give one image, (H, W) or (H, W, C)"),
        (RGB[:0], "an array of shape (0, 30, 3)"),
        (RGB[0, 0], "an array of shape (3,)"),
        (torch.zeros(3, 20, 3, dtype=torch.uint8), "(3, 20, 3) the channels could be first or las"),
        (Image.new("I;16", (20, 30)), "more than 8 bits a channel (Pillow mode I;16)"),
        (Image.new("HSV", (20, 30)), "of Pillow mode HSV, which is neither grey nor RGB as files"),
        (Image.new("RGBX", (20, 30)), "of Pillow mode RGBX, which is neither grey nor RGB"),
        (Image.new("F", (20, 30)), "more than 8 bits a channel"),
        (Image.new("1", (10_000, 5_001)), "over the limit of 50 megapixels"),
        (io.BytesIO(b"no image"), "it: neither JPEG, PNG, BMP nor WebP, begins with b'no image'"),
        (None, "NoneType is no image"),
        (["a.jpg"], "list is no image"),
    ],
)
def test_what_is_no_image_is_refused_with_the_mend(picture, why):
    with pytest.raises(DataError) as caught:
        pixels(picture)
    assert why in str(caught.value)
    assert str(caught.value).startswith("it: ")


def test_an_animated_image_is_refused():
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    file = as_file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="animated, 2 frames"):
        pixels(Image.open(file))


def test_a_damaged_image_is_refused():
    content = as_file(Image.fromarray(RGB), "PNG").getvalue()
    with pytest.raises(DataError, match="it: truncated or damaged"):
        pixels(Image.open(io.BytesIO(content[:200])))


def test_an_image_is_called_by_its_path_or_position(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    with path.open("rb") as file, Image.open(path) as image:
        for given in (path, str(path), image, file):
            assert name_of(given, 3) == str(path)
    assert name_of(RGB, 3) == name_of(Image.fromarray(RGB), 3) == "image 3"


def test_what_is_known_is_tidied():
    given = {"age": "55", "sex": " Female", "localization": "NA"}
    assert known_of(given, ("age", "sex", "localization"), "it") == {"age": 55.0, "sex": "female"}
    assert known_of(given, ("sex",), "it") == {"sex": "female"}
    assert known_of({"age": float("nan")}, ("age",), "it") == {}
    assert known_of(None, ("age",), "it") == {}
    for age in (121, "old", -1):
        with pytest.raises(DataError, match=f"it: age '{age}' is no number of years"):
            known_of({"age": age}, ("age",), "it")
