"""Each image file looked at once: can it be read, what is it, what does it show."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image
from tqdm import tqdm

from dermalyze.data.decode import PreprocessSpec, decode
from dermalyze.data.near_duplicates import GREY_SIZE, Grey, grey_picture
from dermalyze.errors import DataError

logger = logging.getLogger(__name__)

# Spread of brightness (standard deviation, of 255) below which a picture shows nothing: its hash
# would be made of rounding errors. The flattest image of HAM10000 has more than 4.
FLAT = 1.0
THUMBNAIL_SIZE = 200  # pixels a side


@dataclass(frozen=True)
class ImageFault:
    """An image that cannot be read, or that differs from the others."""

    image_id: str
    dx: str
    reason: str


@dataclass(frozen=True, eq=False)
class Look:
    """What is kept of one image file."""

    sha256: str  # of the file
    size: str  # "width x height" in pixels, as stored
    mode: str  # Pillow's, such as RGB
    grey_HW: Grey  # GREY_SIZE pixels a side

    @property
    def is_flat(self) -> bool:
        """Whether the picture is of a single colour, but for rounding."""
        return float(self.grey_HW.std()) < FLAT


def look_at_all(rows: pd.DataFrame) -> tuple[list[Look], pd.DataFrame, list[ImageFault]]:
    """Look at the files of a table (columns image_id, dx and path).

    Returns:
        The looks, the rows they belong to (in order, numbered anew), and the broken images.
    """
    paths = rows["path"].tolist()
    start = time.perf_counter()
    # Threads, because Pillow decodes outside the GIL.
    pool = ThreadPoolExecutor()
    try:
        shown = tqdm(
            pool.map(_look, paths), total=len(paths), desc="auditing", unit="image", disable=None
        )
        results = list(shown)
    finally:
        pool.shutdown(cancel_futures=True)
    seconds = time.perf_counter() - start
    rate = len(paths) / seconds
    logger.info("looked at %d images in %.1f s (%.0f images/s)", len(paths), seconds, rate)

    broken = [
        ImageFault(image_id, dx, result)
        for image_id, dx, result in zip(rows["image_id"], rows["dx"], results, strict=True)
        if isinstance(result, str)
    ]
    looks = [result for result in results if isinstance(result, Look)]
    readable = rows[[isinstance(result, Look) for result in results]]
    return looks, readable.reset_index(drop=True), broken


def _look(path: str) -> Look | str:
    """Return what a file shows, or why it cannot be read."""
    try:
        grey_HW = grey_picture(decode(path, PreprocessSpec(image_size=GREY_SIZE)))
        with Path(path).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            with Image.open(file) as header:  # reads no pixels
                return Look(sha256, f"{header.width} x {header.height}", header.mode, grey_HW)
    except (DataError, OSError) as error:
        return str(error).removeprefix(f"{path}: ")


def counted(values: Iterable[str]) -> dict[str, int]:
    """Return how often each value stands there, the most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def odd_images(rows: pd.DataFrame, looks: Sequence[Look]) -> list[ImageFault]:
    """Return the images of another size or mode than most, and those that show nothing."""
    if not looks:
        return []
    usual_size = next(iter(counted(look.size for look in looks)))
    usual_mode = next(iter(counted(look.mode for look in looks)))
    faults = []
    for image_id, dx, look in zip(rows["image_id"], rows["dx"], looks, strict=True):
        reasons = [
            f"{value}, where most are {usual}"
            for value, usual in ((look.size, usual_size), (look.mode, usual_mode))
            if value != usual
        ]
        if look.is_flat:
            reasons.append("a single colour, shows nothing")
        if reasons:
            faults.append(ImageFault(image_id, dx, "; ".join(reasons)))
    return faults


def thumbnails(rows: pd.DataFrame, image_ids: Iterable[str]) -> dict[str, str]:
    """Return small JPEGs (base64) of the images, as the model sees them: squashed to a square."""
    path_of = dict(zip(rows["image_id"], rows["path"], strict=True))
    spec = PreprocessSpec(image_size=THUMBNAIL_SIZE)
    pictures = {}
    shown = sorted(set(image_ids))
    for image_id in tqdm(shown, "picturing", unit="image", disable=None if shown else True):
        jpeg = io.BytesIO()
        Image.fromarray(decode(path_of[image_id], spec)).save(jpeg, "JPEG", quality=85)
        pictures[image_id] = base64.b64encode(jpeg.getvalue()).decode("ascii")
    return pictures
