"""What may be given as an image, and what is known of it besides: made what models take.

A file comes through `decode` alone; what lies in memory through `squash`, its second half.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from dermalyze.data.decode import PreprocessSpec, decode, squash
from dermalyze.data.metadata_features import COLUMNS
from dermalyze.data.tidying import MISSING, OLDEST, UNKNOWN
from dermalyze.errors import DataError, nearest
from dermalyze.files import writable

Picture = str | Path | BinaryIO | Image.Image | NDArray[np.uint8] | torch.Tensor
Metadata = Mapping[str, Any]

_CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency


@dataclass(frozen=True, eq=False)
class Given:
    """An image to be judged: what it is called, where it is, and what is known of it besides."""

    name: str
    picture: Picture
    metadata: Metadata | None


def name_of(picture: Picture, position: int) -> str:
    """Return what an image is called in results: its path, or its position, counted from 0.

    Bytes of a path that are no UTF-8 come as \\xNN.
    """
    if isinstance(picture, str | os.PathLike):
        return writable(str(picture))
    named = getattr(picture, "filename", None) or getattr(picture, "name", None)
    return writable(named) if isinstance(named, str) else f"image {position}"


def pixels_of(picture: Picture, spec: PreprocessSpec, name: str) -> NDArray[np.uint8]:
    """Return an image as uint8 RGB, shape (image_size, image_size, 3); see `decode`.

    Args:
        picture: a path or a seekable binary stream of a file; a Pillow image; a uint8 array (H, W)
            or (H, W, C) of C = 1, 3 or 4 channels: grey, RGB, RGB with transparency; or a uint8
            tensor of these shapes or (C, H, W). Where a tensor's first or last dimension could
            both be the channels, it is refused.
        spec: what to make of it.
        name: for errors.

    Raises:
        DataError: the file cannot be used (see `decode`), or another type, dtype or shape.
    """
    if isinstance(picture, torch.Tensor):
        picture = _channels_last(picture, name).detach().cpu().numpy()
    if isinstance(picture, np.ndarray):
        picture = _image_of(picture, name)
    if isinstance(picture, Image.Image):
        return squash(picture, spec, name)
    if not (isinstance(picture, str | os.PathLike) or hasattr(picture, "read")):
        raise DataError(
            f"{name}: {type(picture).__name__} is no image. Give a path, a Pillow image, or a "
            "uint8 array or tensor."
        )
    return decode(picture, spec, called=name)


def _channels_last(image: torch.Tensor, name: str) -> torch.Tensor:
    """Return a tensor (H, W, C), whatever its order is; what is no image passes unchanged."""
    if image.ndim != 3:
        return image
    first, last = image.shape[0] in _CHANNELS, image.shape[2] in _CHANNELS
    if first and last:
        raise DataError(
            f"{name}: in a tensor of shape {tuple(image.shape)} the channels could be first or "
            "last. Give it as an array (H, W, C): image.numpy(), after image.permute(1, 2, 0) "
            "where they are first."
        )
    return image.permute(1, 2, 0) if first else image


def _image_of(array: NDArray[Any], name: str) -> Image.Image:
    if array.dtype != np.uint8:
        raise DataError(
            f"{name}: pixels of type {array.dtype}, and how they map to 0..255 is not ours to "
            "guess. Give uint8: of numbers in [0, 1], (image * 255).round().astype(np.uint8)."
        )
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS)
    if not shaped or array.size == 0:
        mend = "Give one image, (H, W) or (H, W, C) with C = 1, 3 or 4"
        if array.ndim == 3 and array.shape[0] in _CHANNELS:
            mend = "Channels come last in an array: np.moveaxis(image, 0, 2)"
        if array.ndim == 4:
            mend = "Give one image, or several as a list to predict_batch"
        raise DataError(f"{name}: an array of shape {array.shape}. {mend}.")
    grey = array.ndim == 3 and array.shape[2] == 1
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if grey else array))


def known_of(metadata: Metadata | None, columns: Sequence[str], name: str) -> dict[str, Any]:
    """Return what is known of an image besides its pixels, for the columns that models take.

    Args:
        metadata: age (years, 0 < age <= 120), sex and localization, or some of them; empty, None
            and "unknown" say nothing, and so does an age of 0, as in HAM10000.
        columns: that a model takes; others are not looked at.
        name: of the image, for errors.

    Raises:
        DataError: another column, or an age that is none.
    """
    known: dict[str, Any] = {}
    for column, value in (metadata or {}).items():
        if column not in COLUMNS:
            raise DataError(f"{name}: metadata {column!r}.{nearest(column, COLUMNS)}")
        text = "" if value is None else str(value).strip().lower()
        if column not in columns or text in MISSING:
            continue
        if column != "age":
            known[column] = text
        elif (years := _years(text, name)) > 0:
            known[column] = years
    return known


def _years(text: str, name: str) -> float:
    try:
        years = float(text)
    except ValueError:
        years = math.nan
    if not 0 <= years <= OLDEST:
        raise DataError(
            f"{name}: age {text!r} is no number of years up to {OLDEST:.0f}. Leave it empty where "
            "it is not known."
        )
    return years


def frame_of(known_N: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return what is known of images as the columns of a table, a row an image."""
    return pd.DataFrame(
        {
            "age": np.array([known.get("age", math.nan) for known in known_N], dtype=np.float64),
            **{
                column: [known.get(column, UNKNOWN) for known in known_N]
                for column in COLUMNS
                if column != "age"
            },
        }
    )
