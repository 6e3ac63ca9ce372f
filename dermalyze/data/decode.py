"""The one way from an image file to uint8 pixels.

Training, validation, evaluation, prediction, the cache and the audit all come through `decode`, so
none of them can see other pixels than the rest. It uses Pillow alone. A file's format is told from
its first bytes and never from its name; the size is checked before any pixel is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from dermalyze.errors import ConfigError, DataError
from dermalyze.files import writable

# Part of every checkpoint and of every cache key: raise it when the same file would give other
# pixels.
DECODE_VERSION = 1
MAX_PIXELS = 50_000_000
MAX_SCANS = 100  # of a JPEG: a progressive one has some ten, and each costs as much as the image

# (where, signature, plugin). The plugins are called directly and not through Image.open, which
# would warn about large images (and turn a JPEG with a picture index into another format) before
# the size can be looked at. TIFF is left out: pages, tiles larger than the image, 16-bit and float
# samples, for a format that no dermoscopic collection is published in.
_FORMATS: tuple[tuple[int, bytes, type[ImageFile.ImageFile]], ...] = (
    (0, b"\xff\xd8\xff", JpegImageFile),
    (0, b"\x89PNG\r\n\x1a\n", PngImageFile),
    (0, b"BM", BmpImageFile),
    (8, b"WEBP", WebPImageFile),
)
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"})
_OTHER_COLOURS = frozenset({"HSV", "LAB", "La", "RGBX", "RGBa", "YCbCr"})
_DOWNLOAD_AGAIN = "Download it again"
_SAVE_ANEW = "Save it anew as an 8-bit RGB JPEG or PNG"


@dataclass(frozen=True)
class PreprocessSpec:
    """What a file becomes: RGB, `image_size` x `image_size` pixels, uint8.

    The image is squashed, not cropped: a lesion at the border stays in the picture, and HAM10000's
    600 x 450 pixels all change their aspect by the same factor.

    Raises:
        ConfigError: `image_size` is not a whole number >= 1.
    """

    image_size: int

    def __post_init__(self) -> None:
        if type(self.image_size) is not int or self.image_size < 1:
            raise ConfigError(
                f"data.image_size={self.image_size!r}: not a whole number of pixels >= 1. "
                "Give one such as 224."
            )

    def as_dict(self) -> dict[str, int]:
        """Return plain values for a checkpoint's header, the version of this module among them."""
        return {"decode_version": DECODE_VERSION, "image_size": self.image_size}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PreprocessSpec:
        """Return the spec that `as_dict` described.

        Raises:
            DataError: other keys, or the version of another Dermalyze, whose pixels differ.
        """
        if set(values) != {"decode_version", "image_size"}:
            raise DataError(
                f"preprocessing {dict(values)!r}: expected the keys decode_version and "
                "image_size, as PreprocessSpec.as_dict writes them."
            )
        if values["decode_version"] != DECODE_VERSION:
            raise DataError(
                f"preprocessing decode_version={values['decode_version']!r}: this Dermalyze "
                f"decodes images by version {DECODE_VERSION}, so the model would see other pixels "
                "than it was trained on. Use the Dermalyze that made it, or train again."
            )
        return cls(image_size=values["image_size"])


def decode(
    source: str | Path | BinaryIO, spec: PreprocessSpec, *, called: str | None = None
) -> NDArray[np.uint8]:
    """Return the image as uint8 RGB, shape (image_size, image_size, 3), writable.

    Reads JPEG, PNG, BMP and WebP, up to 50 megapixels. In this order:

    1. EXIF rotation and mirroring are applied.
    2. Palette, 1-bit, greyscale and CMYK become RGB. Colour profiles are not applied.
    3. Where a pixel is transparent it is laid over black: the colour below alpha 0 is whatever the
       program that saved it left there, and the surround of a dermoscope's field is black.
    4. Squashed by Pillow's BILINEAR, a triangle filter that widens with the reduction and so
       averages over all source pixels (antialiased). It cannot overshoot, as bicubic and Lanczos
       do at hairs and reflections.

    Of a JPEG that holds several pictures (phones add depth or brightness maps) the first is read,
    the one that every viewer shows. Damage inside a JPEG, BMP or WebP of full length can pass
    unseen, because these formats carry no checksums.

    Args:
        source: a path, or a seekable binary stream.
        spec: what to make of it.
        called: what errors call a stream; None: by its `name`, if it has one.

    Raises:
        DataError: missing, empty, truncated or damaged; not an image or of another format; more
            than 8 bits a channel; animated; over 50 megapixels; a JPEG of over 100 scans.
    """
    place, stream = _opened(source, called)
    with stream as file:
        image = _image(file, place)
        with _damage_told(place):
            ImageOps.exif_transpose(image, in_place=True)
            return _squashed(image, spec)


def squash(image: Image.Image, spec: PreprocessSpec, place: str) -> NDArray[np.uint8]:
    """Return what `decode` makes of a file, for an image that was opened or made elsewhere.

    Args:
        image: left as it is, but for its pixels being read.
        spec: what to make of it.
        place: what the image is called in errors.

    Raises:
        DataError: as `decode`, where an opened image still tells.
    """
    _refuse_large(image, place)
    _refuse_unfit(image, place)
    with _damage_told(place):
        return _squashed(ImageOps.exif_transpose(image), spec)


def _squashed(upright: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    rgb = _laid_over_black(upright) if upright.has_transparency_data else upright.convert("RGB")
    size = (spec.image_size, spec.image_size)
    return np.array(rgb.resize(size, Image.Resampling.BILINEAR))


@contextmanager
def _damage_told(place: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise of all kinds on damaged files
        raise _damaged(place, error) from error


def _opened(source: str | Path | BinaryIO, called: str | None) -> tuple[str, Any]:
    if not isinstance(source, str | os.PathLike):
        return called or str(getattr(source, "name", "<stream>")), nullcontext(source)
    place = writable(str(source))
    try:
        return place, Path(source).open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{place}: cannot be opened: {reason}. Check the path.") from error


def _image(file: BinaryIO, place: str) -> ImageFile.ImageFile:
    """Return the image with its header read and judged, its pixels not yet read."""
    try:
        head = file.read(64)
        file.seek(0)
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error}. {_DOWNLOAD_AGAIN}.") from error
    if not head:
        raise DataError(f"{place}: the file is empty (0 bytes). {_DOWNLOAD_AGAIN}.")
    plugin = next((p for at, mark, p in _FORMATS if head[at:].startswith(mark)), None)
    if plugin is None:
        raise DataError(f"{place}: {_foreign(head)}")
    try:
        image = plugin(file)
        _refuse_large(image, place)
        if plugin is JpegImageFile:
            _refuse_many_scans(file, place)
        if plugin is PngImageFile:
            # Checks all checksums and the end mark, which reading the pixels does not.
            image.verify()
            file.seek(0)
            image = plugin(file)
    except (MemoryError, DataError):
        raise
    except Image.DecompressionBombError as error:  # WebP, whose plugin allocates at once
        raise DataError(f"{place}: {_too_large('the size in its header')}") from error
    except Exception as error:  # Pillow's plugins raise of all kinds on damaged files
        raise _damaged(place, error) from error

    _refuse_unfit(image, place)
    return image


def _refuse_large(image: Image.Image, place: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{place}: {_too_large(f'{width} x {height} pixels')}")


def _refuse_many_scans(file: BinaryIO, place: str) -> None:
    """Refuse a few bytes a scan that would keep a reader busy for hours; the file is rewound."""
    file.seek(0)
    scans = file.read().count(b"\xff\xda")  # what is compressed never looks like this mark
    file.seek(0)
    if scans > MAX_SCANS:
        raise DataError(
            f"{place}: {scans} scans over one image, where a progressive JPEG has some ten. "
            f"{_SAVE_ANEW}."
        )


def _refuse_unfit(image: Image.Image, place: str) -> None:
    # Of a JPEG with several pictures, which Pillow's own opening calls MPO, the first is the one.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise DataError(
            f"{place}: animated, {frames} frames, and which one to judge is not ours to guess. "
            f"{_SAVE_ANEW}, one frame."
        )
    if image.mode in _OTHER_COLOURS:
        raise DataError(
            f"{place}: of Pillow mode {image.mode}, which is neither grey nor RGB as files have "
            f"them. {_SAVE_ANEW}; or, of a Pillow image, give image.convert('RGB')."
        )
    # Pillow cuts 16-bit RGB down to 8 bits in silence; only the raw mode tells of it.
    cut = any(str(tile.args).endswith(";16B") for tile in getattr(image, "tile", ()))
    if cut or image.mode not in _EIGHT_BIT_MODES:
        raise DataError(
            f"{place}: more than 8 bits a channel (Pillow mode {image.mode}), and how its "
            f"brightness maps to 0..255 is not ours to guess. {_SAVE_ANEW}."
        )


def _laid_over_black(image: Image.Image) -> Image.Image:
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")


def _foreign(head: bytes) -> str:
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return f"not an image but a web page or XML, begins with {head[:24]!r}. {_DOWNLOAD_AGAIN}."
    return (
        f"neither JPEG, PNG, BMP nor WebP, begins with {head[:12]!r}. "
        f"{_DOWNLOAD_AGAIN}; or, if it is of another format, save it as PNG."
    )


def _too_large(size: str) -> str:
    return (
        f"{size}, over the limit of {MAX_PIXELS // 10**6} megapixels. Scale it down before use; "
        "dermoscopic images have 0.3 to 24 megapixels."
    )


def _damaged(place: str, error: Exception) -> DataError:
    return DataError(
        f"{place}: truncated or damaged, cannot be decoded ({type(error).__name__}: {error}). "
        f"{_DOWNLOAD_AGAIN}."
    )
